//! How many requests of a lane may be in flight: as many as the configuration says, or as the server is found to serve
//! best, and fewer after it has refused some for lack of room.
//!
//! This is the mechanism, which counts; what to make of what is seen is left to policies that know no clock of their
//! own: [`search`] finds by latency how many are best, where the concurrency is `auto`; [`wall`] finds by refusals how
//! many are too many, and knows no more than the configured number where it is given.

mod round;
mod search;
mod wall;

use tokio::time::Instant;

use self::search::Search;
use self::wall::Wall;
use crate::config::{self, Concurrency};
use crate::dispatch::attempt::{Ended, EndedKind};
use crate::domain::Shortage;

/// A bare refusal speaks of room only where this share of the slots was taken: in a half empty lane it is something
/// else that the server is short of.
const FULL: f64 = 0.85;

/// See the module's words.
#[derive(Debug)]
pub(in crate::dispatch) struct Slots {
    least: usize,
    most: usize,
    /// None where the concurrency is given.
    search: Option<Search>,
    wall: Wall,
    in_flight: usize,
}

impl Slots {
    pub(super) fn new(limits: &config::Limits, now: Instant) -> Self {
        let mut slots = Self { least: 1, most: 1, search: None, wall: Wall::new(now), in_flight: 0 };
        slots.change(limits, now);
        slots
    }

    /// Other limits from now on; what was found out holds as far as they let it.
    pub(in crate::dispatch) fn change(&mut self, limits: &config::Limits, now: Instant) {
        let least = match limits.concurrency {
            Concurrency::Fixed(_) => {
                self.search = None;
                1
            }
            Concurrency::Auto { min, .. } => {
                self.search.get_or_insert_with(|| Search::new(now));
                min
            }
        };
        self.most = most(limits);
        self.least = (least as usize).clamp(1, self.most);
        self.keep_within(now);
    }

    /// How many requests may be in flight.
    pub(in crate::dispatch) fn allowed(&self) -> usize {
        let found = self.search.as_ref().map_or(self.most, Search::slots);
        found.min(self.ceiling())
    }

    /// How many requests are in flight.
    pub(super) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// What was found out, to [begin with](Self::begin_with) another time. None where nothing is looked for, or nothing
    /// found yet.
    pub(in crate::dispatch) fn learnt(&self) -> Option<usize> {
        self.search.as_ref().filter(|search| search.is_settled()).map(|_| self.allowed())
    }

    /// Begins with what was found out another time.
    pub(in crate::dispatch) fn begin_with(&mut self, learnt: usize, now: Instant) {
        if let Some(search) = &mut self.search {
            search.begin_with(learnt.max(1), now);
        }
        self.keep_within(now);
    }

    /// One more is in flight from now on.
    pub(super) fn on_sent(&mut self, now: Instant) {
        self.pass(now);
        self.in_flight += 1;
    }

    /// Learns from an attempt that has ended.
    pub(super) fn on_ended(&mut self, ended: &Ended, now: Instant) {
        self.pass(now);
        let in_flight = self.in_flight;
        self.in_flight = in_flight.saturating_sub(1);
        let bounds = [self.least, self.ceiling()];
        let took = ended
            .exchange
            .map(|exchange| exchange.answered_at.saturating_duration_since(exchange.sent_at).as_secs_f64());
        match ended.kind {
            EndedKind::Served => {
                self.wall.on_served(in_flight, self.most, now);
                let tokens = ended.usage.map(|usage| usage.output_tokens);
                if let (Some(search), Some(took), true) = (&mut self.search, took, ended.is_answer) {
                    search.on_answer(took, tokens, bounds, now);
                }
            }
            EndedKind::Throttled { short_of, .. } if self.is_of_room(short_of, in_flight) => {
                let latency = self.search.as_ref().map_or(0.0, Search::latency);
                self.wall.on_refused(in_flight, latency, now);
            }
            EndedKind::Failed => {
                if let (Some(search), Some(took)) = (&mut self.search, took) {
                    search.on_none(took, bounds, now);
                }
            }
            EndedKind::Throttled { .. } | EndedKind::Waiting | EndedKind::Blocked => {}
        }
        self.keep_within(now);
    }

    /// Whether a refusal says that there is no room for so many.
    fn is_of_room(&self, short_of: Shortage, in_flight: usize) -> bool {
        match short_of {
            Shortage::Capacity => true,
            Shortage::Unknown => round::as_number(in_flight) >= FULL * round::as_number(self.allowed()),
            Shortage::Requests | Shortage::Tokens => false,
        }
    }

    fn ceiling(&self) -> usize {
        self.wall.most().max(self.least).min(self.most)
    }

    fn pass(&mut self, now: Instant) {
        if let Some(search) = &mut self.search {
            search.pass(self.in_flight, now);
        }
    }

    fn keep_within(&mut self, now: Instant) {
        let (least, ceiling) = (self.least, self.ceiling());
        if let Some(search) = &mut self.search {
            search.keep_within(least, ceiling, now);
        }
    }
}

/// How many a queue may have in flight at the most.
pub(in crate::dispatch) fn most(limits: &config::Limits) -> usize {
    let slots = match limits.concurrency {
        Concurrency::Fixed(slots) => slots,
        Concurrency::Auto { max, .. } => max,
    };
    slots.max(1) as usize
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;
    use crate::dispatch::attempt::Exchange;
    use crate::provider::{RateHeaders, Usage};

    pub(in crate::dispatch::lane) fn ended(kind: EndedKind) -> Ended {
        Ended { kind, ..Ended::in_lane(0) }
    }

    fn refused(short_of: Shortage) -> Ended {
        ended(EndedKind::Throttled { retry_after: None, short_of })
    }

    fn fixed(slots: u32) -> config::Limits {
        config::Limits { concurrency: Concurrency::Fixed(slots), ..config::Limits::default() }
    }

    fn auto(min: u32, max: u32) -> config::Limits {
        config::Limits { concurrency: Concurrency::Auto { min, max }, ..config::Limits::default() }
    }

    /// Fills what is free, waits for a round trip, and lets all of it be answered.
    async fn round(slots: &mut Slots, most: usize, latency: Duration) {
        let sent_at = Instant::now();
        let sent = slots.allowed().min(most).saturating_sub(slots.in_flight());
        (0..sent).for_each(|_| slots.on_sent(sent_at));
        advance(latency).await;
        let answered_at = Instant::now();
        let exchange = Some(Exchange { sent_at, answered_at, rate: RateHeaders::default() });
        (0..sent).for_each(|_| slots.on_ended(&Ended { exchange, ..ended(EndedKind::Served) }, answered_at));
    }

    const LATENCY: Duration = Duration::from_millis(200);

    #[tokio::test(start_paused = true)]
    async fn a_given_number_falls_under_what_is_refused_and_comes_back() {
        let mut slots = Slots::new(&fixed(8), Instant::now());
        (0..8).for_each(|_| slots.on_sent(Instant::now()));
        // There is room for five.
        (0..3).for_each(|_| slots.on_ended(&refused(Shortage::Capacity), Instant::now()));
        assert_eq!((slots.allowed(), slots.in_flight()), (6, 5));
        slots.on_sent(Instant::now());
        slots.on_ended(&refused(Shortage::Capacity), Instant::now());
        assert_eq!((slots.allowed(), slots.in_flight()), (5, 5));
        (0..5).for_each(|_| slots.on_ended(&ended(EndedKind::Served), Instant::now()));
        round(&mut slots, 99, LATENCY).await;
        assert_eq!(slots.allowed(), 5, "it waits for a while");
        for _ in 0..50 {
            round(&mut slots, 99, LATENCY).await;
        }
        assert_eq!(slots.allowed(), 8, "and never more than was given");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_that_stands_is_tried_ever_more_seldom() {
        let mut slots = Slots::new(&fixed(64), Instant::now());
        let (mut tries, mut counts) = (0, Vec::new());
        for second in 1..=240 {
            for _ in 0..5 {
                while slots.in_flight() < slots.allowed() {
                    slots.on_sent(Instant::now());
                    if slots.in_flight() > 32 {
                        slots.on_ended(&refused(Shortage::Capacity), Instant::now());
                        tries += 1;
                    }
                }
                round(&mut slots, 0, LATENCY).await;
                while slots.in_flight() > 0 {
                    slots.on_ended(&ended(EndedKind::Served), Instant::now());
                }
            }
            if second % 60 == 0 {
                counts.push(std::mem::take(&mut tries));
            }
        }
        assert!(counts[0] <= 24 && counts[3] <= 4, "{counts:?}");
        assert!(slots.allowed().abs_diff(32) <= 1, "{}", slots.allowed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_refusals_for_a_rate_leave_the_slots_alone() {
        let mut slots = Slots::new(&fixed(8), Instant::now());
        for short_of in [Shortage::Requests, Shortage::Tokens, Shortage::Unknown] {
            (0..4).for_each(|_| slots.on_sent(Instant::now()));
            (0..4).for_each(|_| slots.on_ended(&refused(short_of), Instant::now()));
            assert_eq!(slots.allowed(), 8, "{short_of:?}");
            slots.on_sent(Instant::now());
            slots.on_ended(&ended(EndedKind::Served), Instant::now());
        }
        (0..8).for_each(|_| slots.on_sent(Instant::now()));
        (0..3).for_each(|_| slots.on_ended(&refused(Shortage::Unknown), Instant::now()));
        assert_eq!(slots.allowed(), 6, "the lane was full");
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_by_chance_change_little() {
        let mut slots = Slots::new(&fixed(32), Instant::now());
        let mut dice = fastrand::Rng::with_seed(7);
        let (mut least, mut now) = (32, Instant::now());
        for _ in 0..20_000 {
            while slots.in_flight() < slots.allowed() {
                slots.on_sent(now);
            }
            now += LATENCY / 32;
            let kind = if dice.f64() < 0.05 { refused(Shortage::Capacity) } else { ended(EndedKind::Served) };
            slots.on_ended(&kind, now);
            least = if now.duration_since(Instant::now()) > Duration::from_secs(30) {
                least.min(slots.allowed())
            } else {
                32
            };
        }
        assert!(least >= 24, "{least}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_search_grows_only_where_the_lane_is_full() {
        let mut slots = Slots::new(&auto(1, 64), Instant::now());
        for _ in 0..50 {
            round(&mut slots, 5, LATENCY).await;
        }
        assert_eq!((slots.allowed(), slots.learnt()), (8, None));
        for _ in 0..10 {
            round(&mut slots, 99, LATENCY).await;
        }
        assert_eq!(slots.allowed(), 64);
        for _ in 0..50 {
            round(&mut slots, 5, LATENCY).await;
        }
        assert_eq!(slots.allowed(), 64, "and stays");
    }

    /// A server that works on 32 at once, and how often: what it is asked is what the slots allow.
    struct Server {
        now: Instant,
        free_at: Vec<Instant>,
        dice: fastrand::Rng,
    }

    /// What comes of a request in the end, how long the server works on it, and the tokens that it writes.
    type Work = (EndedKind, Duration, Option<u64>);

    impl Server {
        fn new() -> Self {
            let now = Instant::now();
            Self { now, free_at: vec![now; 32], dice: fastrand::Rng::with_seed(3) }
        }

        /// So many requests end. Returns the fewest slots since half of them have.
        fn serve(
            &mut self,
            slots: &mut Slots,
            requests: usize,
            work: impl Fn(&mut fastrand::Rng) -> Work,
        ) -> usize {
            let mut pending: Vec<(Instant, Instant, Work)> = Vec::new();
            let mut fewest = usize::MAX;
            for number in 0..requests {
                while slots.in_flight() < slots.allowed() {
                    let (worker, free_at) =
                        self.free_at.iter().copied().enumerate().min_by_key(|(_, at)| *at).unwrap();
                    let made = work(&mut self.dice);
                    self.free_at[worker] = free_at.max(self.now) + made.1;
                    slots.on_sent(self.now);
                    pending.push((self.free_at[worker], self.now, made));
                }
                let first = pending.iter().enumerate().min_by_key(|(_, one)| one.0).unwrap().0;
                let (answered_at, sent_at, made) = pending.swap_remove(first);
                self.now = answered_at;
                self.end(slots, sent_at, made);
                if number >= requests / 2 {
                    fewest = fewest.min(slots.allowed());
                }
            }
            for (at, sent_at, made) in pending {
                self.now = self.now.max(at);
                self.end(slots, sent_at, made);
            }
            fewest
        }

        fn end(&self, slots: &mut Slots, sent_at: Instant, (kind, _, tokens): Work) {
            let exchange = Some(Exchange { sent_at, answered_at: self.now, rate: RateHeaders::default() });
            let usage = tokens.map(|output_tokens| Usage { output_tokens, ..Usage::default() });
            let is_answer = kind == EndedKind::Served && tokens != Some(0);
            slots.on_ended(&Ended { usage, exchange, is_answer, ..ended(kind) }, self.now);
        }
    }

    fn answer(milliseconds: u64, tokens: u64) -> Work {
        (EndedKind::Served, Duration::from_millis(milliseconds), Some(tokens))
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_that_take_very_long_or_time_out_are_no_crowd() {
        for kind in [EndedKind::Served, EndedKind::Failed] {
            let (mut server, mut slots) = (Server::new(), Slots::new(&auto(1, 256), Instant::now()));
            let fewest = server.serve(&mut slots, 6_000, |dice| match dice.u32(0..500) {
                0 => (kind, Duration::from_secs(20), Some(10)),
                _ => answer(dice.u64(150..250), 10),
            });
            // Those that take long leave room for 26 of the 32.
            assert!(fewest >= 17, "{kind:?}: {fewest}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_that_come_at_once_do_not_pass_for_quick_answers() {
        let (mut server, mut slots) = (Server::new(), Slots::new(&auto(1, 256), Instant::now()));
        server.serve(&mut slots, 2_000, |dice| answer(dice.u64(150..250), 10));
        let fewest = server.serve(&mut slots, 2_000, |dice| match dice.u32(0..2) {
            0 => answer(2, 0),
            _ => answer(dice.u64(150..250), 10),
        });
        assert!(fewest >= 28, "{fewest}");
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_become_ten_times_as_long_are_no_crowd_for_long() {
        let (mut server, mut slots) = (Server::new(), Slots::new(&auto(1, 256), Instant::now()));
        for factor in [1, 10, 1] {
            let fewest = server.serve(&mut slots, 3_000, |dice| {
                let tokens = dice.u64(50..150) * factor;
                answer(100 + tokens * 10, tokens)
            });
            // The floor is tried with seven tenths.
            assert!(fewest >= 22 && slots.allowed() <= 56, "{factor}: {fewest}, {}", slots.allowed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_was_idle_for_hours_goes_on_where_it_was() {
        let (mut server, mut slots) = (Server::new(), Slots::new(&auto(1, 256), Instant::now()));
        server.serve(&mut slots, 2_000, |dice| answer(dice.u64(150..250), 10));
        let before = slots.allowed();
        server.now += Duration::from_hours(5);
        assert_eq!(slots.allowed(), before);
        let fewest = server.serve(&mut slots, 400, |dice| answer(dice.u64(150..250), 10));
        assert!((28..=56).contains(&fewest), "{before}, then {fewest}");
    }

    #[tokio::test(start_paused = true)]
    async fn other_limits_hold_at_once_and_what_was_learnt_holds_within_them() {
        let now = Instant::now();
        let mut slots = Slots::new(&fixed(4), now);
        slots.change(&fixed(9), now);
        assert_eq!((slots.allowed(), slots.learnt()), (9, None));
        slots.change(&auto(2, 64), now);
        slots.begin_with(40, now);
        assert_eq!((slots.allowed(), slots.learnt()), (40, Some(40)));
        slots.change(&auto(2, 16), now);
        assert_eq!(slots.allowed(), 16);
        slots.change(&auto(20, 64), now);
        assert_eq!(slots.allowed(), 20);
        slots.change(&fixed(3), now);
        slots.begin_with(40, now);
        assert_eq!(slots.allowed(), 3);
    }
}
