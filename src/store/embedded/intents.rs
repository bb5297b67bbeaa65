//! `intents.log`: what was about to be sent, and attempts that ended without a record.
//!
//! After a crash, a request whose last intent has neither an `ended` nor a record may have been paid for.
//!
//! A person's `retry`, which makes what waits due at once, is written as an `ended` of each with the new time.
//!
//! # Format
//!
//! Lines of words; the last is the CRC-32C of what stands before it, as eight hex digits.
//!
//! ```text
//! send <index> <attempt> <crc>
//! back <index> <attempt> <crc>
//! lost <index> <attempt> <crc>
//! ended <index> <attempts used up> <due, ms since 1970> <maybe paid: 0 or 1> <crc>
//! ```

use std::collections::BTreeMap;

use crate::domain::Timestamp;

/// One line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    Send {
        index: u32,
        attempt: u32,
    },
    /// The attempt was refused for certain, unpaid: as if it had never been sent.
    Back {
        index: u32,
        attempt: u32,
    },
    /// The process died while the attempt was in flight, and the request may be sent again.
    Lost {
        index: u32,
        attempt: u32,
    },
    Ended {
        index: u32,
        attempts: u32,
        due: Timestamp,
        maybe_paid: bool,
    },
}

impl Intent {
    pub(super) fn to_line(self) -> Vec<u8> {
        let text = match self {
            Self::Send { index, attempt } => format!("send {index} {attempt} "),
            Self::Back { index, attempt } => format!("back {index} {attempt} "),
            Self::Lost { index, attempt } => format!("lost {index} {attempt} "),
            Self::Ended { index, attempts, due, maybe_paid } => {
                format!("ended {index} {attempts} {} {} ", due.as_millis(), u8::from(maybe_paid))
            }
        };
        let crc = crc32c::crc32c(text.as_bytes());
        format!("{text}{crc:08x}\n").into_bytes()
    }

    /// Takes a line without its line end; none if it is torn or damaged.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let (text, crc) = line.split_at_checked(line.len().checked_sub(8)?)?;
        let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?;
        if crc != crc32c::crc32c(text) {
            return None;
        }
        let mut words = std::str::from_utf8(text).ok()?.split_ascii_whitespace();
        let kind = words.next()?;
        let (index, number) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        match kind {
            "send" => Some(Self::Send { index, attempt: number }),
            "back" => Some(Self::Back { index, attempt: number }),
            "lost" => Some(Self::Lost { index, attempt: number }),
            "ended" => {
                let due = Timestamp::from_millis(words.next()?.parse().ok()?);
                Some(Self::Ended { index, attempts: number, due, maybe_paid: words.next()? == "1" })
            }
            _ => None,
        }
    }

    const fn index(self) -> u32 {
        match self {
            Self::Send { index, .. }
            | Self::Back { index, .. }
            | Self::Lost { index, .. }
            | Self::Ended { index, .. } => index,
        }
    }
}

/// How the last attempt of a request ended, and that of one that may be in flight behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Last {
    /// Attempts used up, and when the next one is due.
    pub(super) ended: Option<(u32, Timestamp)>,
    /// The number of an attempt that was begun and has no end.
    pub(super) sent: Option<u32>,
    /// How often the process died with an attempt of it in flight.
    pub(super) lost: u32,
}

impl Last {
    fn follow(&mut self, intent: Intent) {
        match intent {
            Intent::Send { attempt, .. } => self.sent = Some(attempt),
            Intent::Back { .. } => self.sent = None,
            Intent::Lost { attempt, .. } => self.lose(attempt),
            Intent::Ended { attempts, due, .. } => {
                self.ended = Some((attempts, due));
                self.sent = None;
            }
        }
    }

    /// The attempt in flight was lost; the next one is due at once.
    pub(super) const fn lose(&mut self, attempt: u32) {
        self.sent = None;
        self.ended = Some((attempt, Timestamp::from_millis(0)));
        self.lost += 1;
    }
}

/// What the log says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// Of every request that is open.
    pub(super) last: BTreeMap<u32, Last>,
    /// Attempts of all requests that may have been paid for though no answer came of them.
    pub(super) maybe_paid: u32,
}

impl Said {
    /// Follows one line, without its line end; `is_open` says which requests are. Whether the line is sound.
    pub(super) fn take(&mut self, line: &[u8], is_open: impl Fn(u32) -> bool) -> bool {
        let Some(intent) = Intent::parse(line) else { return false };
        let lost = matches!(intent, Intent::Lost { .. } | Intent::Ended { maybe_paid: true, .. });
        self.maybe_paid += u32::from(lost);
        if is_open(intent.index()) {
            self.last.entry(intent.index()).or_default().follow(intent);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(log: &[u8], is_open: impl Fn(u32) -> bool) -> Said {
        let mut said = Said::default();
        for line in log.split(|byte| *byte == b'\n') {
            said.take(line, &is_open);
        }
        said
    }

    proptest! {
        #[test]
        fn lines_are_read_back(index: u32, attempt: u32, due: u64, maybe_paid: bool) {
            let due = Timestamp::from_millis(due);
            for intent in [Intent::Send { index, attempt }, Intent::Back { index, attempt }, Intent::Lost { index, attempt }, Intent::Ended { index, attempts: attempt, due, maybe_paid }] {
                let line = intent.to_line();
                prop_assert_eq!(Intent::parse(line.strip_suffix(b"\n").unwrap()), Some(intent));
                for cut in 0..line.len() - 1 {
                    prop_assert_eq!(Intent::parse(&line[..cut]), None);
                }
            }
        }

        #[test]
        fn anything_may_be_read(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            read(&bytes, |_| true);
        }
    }

    #[test]
    fn the_last_intent_of_open_requests_counts() {
        let due = Timestamp::from_millis(5);
        let ended = Intent::Ended { index: 1, attempts: 1, due, maybe_paid: true };
        let mut log = Vec::new();
        for intent in [Intent::Send { index: 1, attempt: 1 }, Intent::Send { index: 2, attempt: 1 }, ended] {
            log.extend(intent.to_line());
        }
        log.extend(b"send 3 1 dead");
        let said = read(&log, |index| index != 2);
        let one = Last { ended: Some((1, due)), ..Last::default() };
        assert_eq!(said, Said { last: BTreeMap::from([(1, one)]), maybe_paid: 1 });
        for (intent, sent) in
            [(Intent::Send { index: 1, attempt: 2 }, Some(2)), (Intent::Back { index: 1, attempt: 2 }, None)]
        {
            log.push(b'\n');
            log.extend(intent.to_line());
            let said = read(&log, |index| index == 1);
            assert_eq!(said.last, BTreeMap::from([(1, Last { sent, ..one })]));
        }
        log.extend(Intent::Lost { index: 1, attempt: 2 }.to_line());
        let said = read(&log, |_| true);
        let lost = Last { ended: Some((2, Timestamp::from_millis(0))), sent: None, lost: 1 };
        assert_eq!((said.last.get(&1), said.maybe_paid), (Some(&lost), 2));
    }
}
