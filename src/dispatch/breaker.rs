//! Whether a server is down, by what comes of the exchanges with it.
//!
//! It counts what failed for the server's sake (not reached, lost, timed out, a 5xx, a reply without sense) and what was
//! served, whatever the verdict. What asks to come later counts as neither: that is for the pace. The [gate] that
//! owns it closes when [`Breaker::failed`] says so.
//!
//! [gate]: crate::dispatch::gate

use std::time::Duration;

use tokio::time::Instant;

/// So many failures with nothing served between them: a server that fails one request in two gets there once in a
/// thousand times.
const IN_A_ROW: u32 = 10;

/// Fewer where nobody listens: that has nothing to do with what is asked, and more would use up the attempts of a job
/// of one request.
const UNREACHED_IN_A_ROW: u32 = 3;

/// More than half of at least so many, within [`WINDOW`].
const COUNTED_MIN: u32 = 20;
const WINDOW: Duration = Duration::from_mins(1);
const SPANS: usize = 6;

/// How a request failed for the server's sake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failing {
    /// It certainly never came to the server.
    Unreached,
    /// It may have.
    Broken,
}

/// See the module's words.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    in_a_row: u32,
    unreached_in_a_row: u32,
    /// The newest first.
    spans: [Span; SPANS],
    /// When the newest one began.
    began: Option<Instant>,
}

/// What was counted in a part of the window.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    served: u32,
    failed: u32,
}

impl Breaker {
    pub(super) fn served(&mut self, now: Instant) {
        (self.in_a_row, self.unreached_in_a_row) = (0, 0);
        let span = self.span(now);
        span.served = span.served.saturating_add(1);
    }

    /// Says whether the server is down.
    pub(super) fn failed(&mut self, failing: Failing, now: Instant) -> bool {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.unreached_in_a_row = match failing {
            Failing::Unreached => self.unreached_in_a_row.saturating_add(1),
            Failing::Broken => 0,
        };
        let span = self.span(now);
        span.failed = span.failed.saturating_add(1);
        let served = self.served_lately();
        let failed: u32 = self.spans.iter().map(|span| span.failed).sum();
        self.in_a_row >= IN_A_ROW
            || self.unreached_in_a_row >= UNREACHED_IN_A_ROW
            || (served + failed >= COUNTED_MIN && failed > served)
    }

    /// Whether it has been seen at work: what falls down then has worked, and not just answered a try.
    pub(super) fn has_worked(&self) -> bool {
        self.served_lately() >= COUNTED_MIN
    }

    fn served_lately(&self) -> u32 {
        self.spans.iter().map(|span| span.served).sum()
    }

    /// The span of `now`. Older ones move on and drop out.
    fn span(&mut self, now: Instant) -> &mut Span {
        let length = WINDOW / u32::try_from(SPANS).unwrap_or(1);
        let mut began = *self.began.get_or_insert(now);
        if now.saturating_duration_since(began) >= WINDOW * 2 {
            self.spans = [Span::default(); SPANS];
            began = now;
        }
        while now.saturating_duration_since(began) >= length {
            self.spans.rotate_right(1);
            if let Some(newest) = self.spans.first_mut() {
                *newest = Span::default();
            }
            began += length;
        }
        self.began = Some(began);
        self.spans.first_mut().expect("there are some")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(breaker: &mut Breaker, failing: Failing, count: u32) -> bool {
        (0..count).any(|_| breaker.failed(failing, Instant::now()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_down_after_failures_in_a_row_and_sooner_where_nobody_listens() {
        let mut breaker = Breaker::default();
        assert!(!failures(&mut breaker, Failing::Broken, IN_A_ROW - 1));
        breaker.served(Instant::now());
        assert!(!failures(&mut breaker, Failing::Broken, IN_A_ROW - 1));
        assert!(failures(&mut breaker, Failing::Broken, 1));

        let mut breaker = Breaker::default();
        for _ in 0..3 {
            assert!(!failures(&mut breaker, Failing::Unreached, UNREACHED_IN_A_ROW - 1));
            breaker.served(Instant::now());
        }
        assert!(failures(&mut breaker, Failing::Unreached, UNREACHED_IN_A_ROW));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_is_down_when_more_than_half_of_a_minute_fails() {
        let mut breaker = Breaker::default();
        for _ in 0..30 {
            breaker.served(Instant::now());
            assert!(!failures(&mut breaker, Failing::Broken, 1), "half is not more than half");
        }
        tokio::time::advance(WINDOW * 3 / 2).await;
        for round in 0..10 {
            // Three in a row at most; the first twenty decide nothing.
            breaker.served(Instant::now());
            let is_down = failures(&mut breaker, Failing::Broken, 2);
            assert_eq!(is_down, round >= 6, "round {round}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_older_than_a_minute_counts_no_more() {
        let mut breaker = Breaker::default();
        for _ in 0..9 {
            assert!(!failures(&mut breaker, Failing::Broken, 2));
            breaker.served(Instant::now());
            tokio::time::advance(WINDOW / 6).await;
        }
        assert!(breaker.spans.iter().map(|span| span.served + span.failed).sum::<u32>() < COUNTED_MIN);
    }
}
