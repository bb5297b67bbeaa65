//! The clock and the seed: the only source of time and randomness (P8).
//!
//! Under [`Clock::simulated`] time follows tokio's paused clock, so a test that advances it moves
//! everything at once, and a [`Seed`] gives every worker a stream of its own: one seed, one run.

use std::time::Duration;

use fastrand::Rng;
use tokio::time::Instant;
use uuid::{Builder, Uuid};

use crate::domain::{JobId, Timestamp};

/// What time it is. Cheap to clone; every worker holds one.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The machine's clock.
    System,
    /// Starts at `base` and moves with tokio's clock.
    Simulated { base: Timestamp, anchor: Instant },
}

impl Clock {
    /// A clock that begins at `base` now. Needs a tokio runtime.
    pub fn simulated(base: Timestamp) -> Self {
        Self::Simulated { base, anchor: Instant::now() }
    }

    pub fn now(&self) -> Timestamp {
        match self {
            Self::System => system_now(),
            Self::Simulated { base, anchor } => *base + anchor.elapsed(),
        }
    }

    /// How long to sleep until `due`; zero if it has passed. At most a minute, so that a jump of the
    /// machine's clock is noticed: sleep again if it is still not due.
    pub fn until(&self, due: Timestamp) -> Duration {
        due.since(self.now()).min(Duration::from_mins(1))
    }
}

#[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "this is the door for time")]
fn system_now() -> Timestamp {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    let millis = since_epoch.map_or(0, |elapsed| elapsed.as_millis());
    Timestamp::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// How long the machine runs, without its sleep: what a service manager orders events by.
pub fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::try_from(now).unwrap_or_default()
}

/// Where randomness comes from: one seed for the process, a stream derived for each worker.
#[derive(Clone, Copy, Debug)]
pub struct Seed(u64);

impl Seed {
    pub const fn fixed(seed: u64) -> Self {
        Self(seed)
    }

    /// A seed nobody can foretell.
    #[expect(clippy::disallowed_methods, reason = "this is the door for randomness")]
    pub fn from_entropy() -> Self {
        Self(Rng::new().u64(..))
    }

    /// The stream of the worker called `name`; the same seed and name give the same stream.
    pub fn derive(self, name: &str) -> Rng {
        let hash = blake3::Hasher::new().update(&self.0.to_le_bytes()).update(name.as_bytes()).finalize();
        let word = hash.as_bytes().first_chunk::<8>().copied().unwrap_or_default();
        Rng::with_seed(u64::from_le_bytes(word))
    }
}

/// A new job's identity: `UUIDv7` of `now`, so that jobs sort by the time they were accepted.
pub fn job_id(now: Timestamp, rng: &mut Rng) -> JobId {
    let random = rng.u128(..).to_le_bytes();
    let random = random.first_chunk::<10>().copied().unwrap_or_default();
    let uuid: Uuid = Builder::from_unix_timestamp_millis(now.as_millis(), &random).into_uuid();
    JobId::from_uuid(uuid)
}

/// One that sorts behind `before`, also if the clock was put back since that was made.
pub fn job_id_behind(before: JobId, now: Timestamp, rng: &mut Rng) -> JobId {
    // The first six bytes of a UUIDv7 are its time.
    let millis = before.as_bytes().iter().take(6).fold(0, |millis, byte| (millis << 8) | u64::from(*byte));
    let made_at = Timestamp::from_millis(millis);
    job_id(now.max(made_at + Duration::from_millis(1)), rng)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn simulated_time_follows_the_paused_clock() {
        let clock = Clock::simulated(Timestamp::from_millis(1_000));
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(clock.now(), Timestamp::from_millis(91_000));
        assert_eq!(clock.until(Timestamp::from_millis(91_500)), Duration::from_millis(500));
        assert_eq!(clock.until(Timestamp::from_millis(999_000)), Duration::from_mins(1));
        assert_eq!(clock.until(Timestamp::from_millis(0)), Duration::ZERO);
    }

    #[test]
    fn streams_repeat_by_seed_and_differ_by_name() {
        let draw = |seed: u64, name: &str| Seed::fixed(seed).derive(name).u64(..);
        assert_eq!(draw(1, "dispatch"), draw(1, "dispatch"));
        assert_ne!(draw(1, "dispatch"), draw(1, "intake"));
        assert_ne!(draw(1, "dispatch"), draw(2, "dispatch"));
    }

    #[test]
    fn job_ids_sort_by_time() {
        let mut rng = Seed::fixed(1).derive("ids");
        let early = job_id(Timestamp::from_millis(1), &mut rng);
        let late = job_id(Timestamp::from_millis(2), &mut rng);
        assert!(early < late);
    }
}
