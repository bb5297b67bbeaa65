//! Where a [`Script`] stands: what its events make of the settings at a moment, and when that changes next.

use std::time::Duration;

use tokio::time::Instant;

use super::hint::Hint;
use super::script::{Conditions, Event, Script, Trouble};
use super::settings::Settings;

/// A script that runs.
#[derive(Debug)]
pub(super) struct Timeline {
    script: Script,
    began: Instant,
    /// The settings without the script.
    base: Conditions,
    /// When the settings change next.
    next: Option<Instant>,
}

/// The trouble of a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Now {
    pub(super) trouble: Trouble,
    pub(super) hint: Hint,
}

impl Timeline {
    /// Begins at `now`, but `settings` are changed only by the next [`Timeline::follow`].
    pub(super) fn new(script: Script, settings: &Settings, now: Instant) -> Self {
        Self { script, began: now, base: Conditions::of(settings), next: Some(now) }
    }

    /// The script from `now` on.
    pub(super) fn begin(&mut self, script: Script, now: Instant) {
        (self.script, self.began, self.next) = (script, now, Some(now));
    }

    /// What the settings are where no event says otherwise.
    pub(super) fn base(&mut self) -> &mut Conditions {
        &mut self.base
    }

    /// Recalculates the settings whatever the time.
    pub(super) fn touch(&mut self, now: Instant) {
        self.next = Some(now);
    }

    /// The settings that hold now, if they may have changed since the last call.
    pub(super) fn follow(&mut self, now: Instant) -> Option<Conditions> {
        self.next.filter(|next| *next <= now)?;
        let time = self.time(now);
        let bounds = self.script.events.iter().flat_map(|event| [Some(event.at), event.end()]).flatten();
        let next = bounds.filter(|bound| *bound > time).min();
        // What lies beyond the end of the clock never comes.
        self.next = next.and_then(|next| self.began.checked_add(next));
        let mut conditions = self.base.clone();
        for event in self.on(time) {
            conditions.overlay(&event.conditions);
        }
        Some(conditions)
    }

    /// When [`Timeline::follow`] has something new to say.
    pub(super) const fn next(&self) -> Option<Instant> {
        self.next
    }

    /// What every question meets now.
    pub(super) fn now(&self, now: Instant) -> Option<Now> {
        if self.script.events.is_empty() {
            return None;
        }
        let event = self.on(self.time(now)).filter(|event| event.what.is_some()).last()?;
        event.what.map(|trouble| Now { trouble, hint: event.retry_after })
    }

    /// When the server goes down within `within`, if it does.
    pub(super) fn next_down(&self, now: Instant, within: Duration) -> Option<Instant> {
        let time = self.time(now);
        let falls = self.script.events.iter().filter(|event| event.what == Some(Trouble::Down));
        let next = falls.map(|event| event.at).filter(|at| *at > time).min()?;
        (next <= time.saturating_add(within)).then(|| self.began + next)
    }

    fn time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    fn on(&self, time: Duration) -> impl Iterator<Item = &Event> {
        self.script.events.iter().filter(move |event| event.is_on(time))
    }
}

impl Conditions {
    fn of(settings: &Settings) -> Self {
        Self {
            requests_per_minute: settings.requests_per_minute,
            tokens_per_minute: settings.tokens_per_minute,
            capacity: settings.capacity,
            when_full: Some(settings.when_full),
            latency: Some(settings.latency),
            faults: Some(settings.faults.clone()),
        }
    }

    fn overlay(&mut self, other: &Self) {
        let Self { requests_per_minute, tokens_per_minute, capacity, when_full, latency, faults } = other;
        self.requests_per_minute = requests_per_minute.or(self.requests_per_minute);
        self.tokens_per_minute = tokens_per_minute.or(self.tokens_per_minute);
        self.capacity = capacity.or(self.capacity);
        self.when_full = when_full.or(self.when_full);
        self.latency = latency.or(self.latency);
        if faults.is_some() {
            self.faults.clone_from(faults);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(text: &str) -> Timeline {
        let script = Script::parse("script.toml", text).unwrap();
        let settings = Settings { requests_per_minute: Some(3_000), ..Settings::default() };
        Timeline::new(script, &settings, Instant::now())
    }

    const HALVED: &str = r#"
        [[events]]
        at = "60s"
        for = "60s"
        requests_per_minute = 1500
        [[events]]
        at = "90s"
        for = "60s"
        requests_per_minute = 750
        capacity = 8
    "#;

    #[tokio::test(start_paused = true)]
    async fn later_events_win_and_what_they_set_ends_with_them() {
        let mut timeline = timeline(HALVED);
        let mut seen = Vec::new();
        while let Some(next) = timeline.next() {
            let conditions = timeline.follow(next).unwrap();
            let at = next.duration_since(timeline.began).as_secs();
            seen.push((at, conditions.requests_per_minute.unwrap(), conditions.capacity));
            assert_eq!(timeline.follow(next), None, "nothing has changed since");
        }
        let expected = [
            (0, 3_000, None),
            (60, 1_500, None),
            (90, 750, Some(8)),
            (120, 750, Some(8)),
            (150, 3_000, None),
        ];
        assert_eq!(seen, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_base_shows_where_no_event_covers_it() {
        let mut timeline = timeline(HALVED);
        let now = timeline.began + Duration::from_secs(70);
        timeline.base().requests_per_minute = Some(100);
        timeline.touch(now);
        assert_eq!(timeline.follow(now).unwrap().requests_per_minute, Some(1_500));
        let late = timeline.began + Duration::from_secs(200);
        assert_eq!(timeline.follow(late).unwrap().requests_per_minute, Some(100));
    }

    #[tokio::test(start_paused = true)]
    async fn troubles_and_falls_come_when_they_are_to_come() {
        let text = r#"
            [[events]]
            at = "10s"
            for = "5s"
            what = "down"
            [[events]]
            at = "12s"
            for = "1s"
            what = "429"
            retry_after = "300s"
        "#;
        let timeline = timeline(text);
        let at = |seconds| timeline.began + Duration::from_secs(seconds);
        let trouble = |seconds| timeline.now(at(seconds)).map(|now| now.trouble.to_string());
        let troubles = [9, 10, 12, 13, 15].map(trouble);
        let expected = [None, Some("down"), Some("429"), Some("down"), None];
        assert_eq!(troubles, expected.map(|word| word.map(str::to_owned)));
        assert_eq!(timeline.now(at(12)).unwrap().hint.to_string(), "5m");
        assert_eq!(timeline.next_down(at(0), Duration::from_secs(9)), None);
        assert_eq!(timeline.next_down(at(0), Duration::from_secs(11)), Some(at(10)));
        assert_eq!(timeline.next_down(at(10), Duration::MAX), None, "it is down already");
    }
}
