//! How far a fine-tune has come at its provider ([`Progress`]), and which step is next.
//!
//! # Format
//!
//! The memo of a fine-tune's request is a [`Progress`] as JSON. Members that are missing are as at the beginning, and
//! those nobody knows are passed over, so that an older and a newer batchd read each other's.
//!
//! # Invariants
//!
//! - Before anything is created at the provider it is durably [`Sent`](Creation::Sent), and it stays so until its id
//!   is durable. Whatever happens in between, a creation is followed by looks before it is tried again.
//! - Files go before the job that names them, and nothing is created for a fine-tune that is to end.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::fine_tune::{FineTune, TuningData};
use super::id::JobId;
use super::time::Timestamp;

/// What passes before each look for something whose creation was not answered. An upload may still be under way
/// behind the server's front when the first look finds nothing; seconds later it has arrived or never will.
const LOOKS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(3)];

/// So often is looked before something is held to be missing.
pub const LOOKS_MAX: u32 = 3;

/// The first wait between two polls, and the longest. In between it is a share of the time that was watched: so the
/// end of a fine-tune of any length is seen soon, as measured by its length, and one of a day costs no more than
/// one poll a minute.
const POLL_FIRST: Duration = Duration::from_secs(1);
const POLL_LONGEST: Duration = Duration::from_mins(1);
const POLL_SHARE: f64 = 0.15;

/// How far a fine-tune has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    training: Creation,
    validation: Creation,
    job: Creation,
    /// The provider was asked to end the job. Asked twice, it is the same, so this is not kept.
    #[serde(skip)]
    asked_to_end: bool,
}

/// What is known of one thing that is to be at the provider.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Creation {
    /// It is certainly not there.
    #[default]
    Unsent,
    /// It was about to be created, and what came of it is not known.
    Sent {
        /// When it was first sent, by our clock.
        at: Timestamp,
        /// How often it was looked for in vain. A new process looks anew.
        #[serde(skip)]
        looks: u32,
    },
    /// It has this id.
    There {
        id: String,
        /// It can be used, as far as we can tell. A new process asks anew.
        #[serde(skip)]
        is_ready: bool,
    },
}

/// What a fine-tune needs at the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// The file of training data.
    Training,
    /// The file of validation data.
    Validation,
    /// The fine-tune itself.
    Job,
}

/// What its user wants of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    Run,
    /// It is cancelled, or its time is up.
    End,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Upload a file, or create the job.
    Create(Thing),
    /// Look whether it is there.
    Find(Thing),
    /// Ask whether a file can be used.
    Await(Thing),
    /// Ask how the job stands.
    Poll,
    /// Ask the provider to end the job.
    Cancel,
    /// Nothing: nothing runs there.
    Rest,
}

impl Progress {
    /// At the beginning.
    pub fn new(plan: &FineTune) -> Self {
        Self::default().with_given(plan)
    }

    /// As a memo has it; none if it can't be read.
    pub fn read(memo: &[u8], plan: &FineTune) -> Option<Self> {
        serde_json::from_slice(memo).ok().map(|progress: Self| progress.with_given(plan))
    }

    /// Where nothing is known any more, but that nothing was done before `at`: everything may be there.
    pub fn lost(plan: &FineTune, at: Timestamp) -> Self {
        let sent = || Creation::Sent { at, looks: 0 };
        Self { training: sent(), validation: sent(), job: sent(), asked_to_end: false }.with_given(plan)
    }

    pub fn to_memo(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and strings serialise")
    }

    /// Files that the user uploaded are there from the beginning.
    fn with_given(mut self, plan: &FineTune) -> Self {
        for thing in [Thing::Training, Thing::Validation] {
            if let Some(TuningData::Uploaded { id }) = thing.data(plan) {
                *self.of_mut(thing) = Creation::There { id: id.clone(), is_ready: false };
            }
        }
        self
    }

    pub const fn of(&self, thing: Thing) -> &Creation {
        match thing {
            Thing::Training => &self.training,
            Thing::Validation => &self.validation,
            Thing::Job => &self.job,
        }
    }

    const fn of_mut(&mut self, thing: Thing) -> &mut Creation {
        match thing {
            Thing::Training => &mut self.training,
            Thing::Validation => &mut self.validation,
            Thing::Job => &mut self.job,
        }
    }

    /// Its id at the provider, as soon as it is known.
    pub const fn id_of(&self, thing: Thing) -> Option<&str> {
        match self.of(thing) {
            Creation::There { id, .. } => Some(id.as_str()),
            Creation::Unsent | Creation::Sent { .. } => None,
        }
    }

    /// The ids of the files that batchd uploaded.
    pub fn uploads(&self, plan: &FineTune) -> impl Iterator<Item = &str> {
        let is_ours = |thing: &Thing| matches!(thing.data(plan), Some(TuningData::Local { .. }));
        let ours = [Thing::Training, Thing::Validation].into_iter().filter(is_ours);
        ours.collect::<Vec<_>>().into_iter().filter_map(|thing| self.id_of(thing))
    }

    /// What to do next, if nothing has ended it yet.
    pub fn next(&self, plan: &FineTune, wish: Wish) -> Step {
        match (&self.job, wish) {
            (Creation::There { .. }, Wish::End) if !self.asked_to_end => Step::Cancel,
            (Creation::There { .. }, _) => Step::Poll,
            (job, _) if job.may_be_found() => {
                // By its file the job is known where it bears no other mark.
                Step::Find(if self.training.may_be_found() { Thing::Training } else { Thing::Job })
            }
            (Creation::Sent { .. } | Creation::Unsent, Wish::Run) => {
                self.next_upload(plan).unwrap_or(Step::Create(Thing::Job))
            }
            (Creation::Sent { .. } | Creation::Unsent, Wish::End) => self.next_leftover(plan),
        }
    }

    fn next_upload(&self, plan: &FineTune) -> Option<Step> {
        let needed =
            [Thing::Training, Thing::Validation].into_iter().filter(|thing| thing.data(plan).is_some());
        needed
            .map(|thing| match self.of(thing) {
                creation @ (Creation::Unsent | Creation::Sent { .. }) => {
                    Some(if creation.may_be_found() { Step::Find(thing) } else { Step::Create(thing) })
                }
                Creation::There { is_ready: false, .. } => Some(Step::Await(thing)),
                Creation::There { is_ready: true, .. } => None,
            })
            .find_map(|step| step)
    }

    /// What is to be deleted in the end has to be known.
    fn next_leftover(&self, plan: &FineTune) -> Step {
        let may_lie_there = |thing: &Thing| self.of(*thing).may_be_found();
        let mut files = [Thing::Training, Thing::Validation].into_iter();
        files.find(|thing| plan.delete_uploads && may_lie_there(thing)).map_or(Step::Rest, Step::Find)
    }

    /// How long to wait before the next look for `thing`.
    pub fn wait_before_look(&self, thing: Thing) -> Duration {
        let Creation::Sent { looks, .. } = self.of(thing) else { return Duration::ZERO };
        LOOKS.get(*looks as usize).copied().unwrap_or_default()
    }

    /// It is about to be created: to be made durable before it is. What was known before is needed if that comes to
    /// nothing.
    pub fn begin(&mut self, thing: Thing, now: Timestamp) -> Creation {
        let creation = self.of_mut(thing);
        let at = match creation {
            Creation::Sent { at, .. } => *at,
            Creation::Unsent | Creation::There { .. } => now,
        };
        std::mem::replace(creation, Creation::Sent { at, looks: 0 })
    }

    /// It was certainly not created. `before` is what was known before it was begun: if that was nothing certain
    /// either, one more look goes before the next creation.
    pub fn take_back(&mut self, thing: Thing, before: Creation) {
        *self.of_mut(thing) = match before {
            Creation::Sent { at, .. } => Creation::Sent { at, looks: LOOKS_MAX - 1 },
            Creation::Unsent | Creation::There { .. } => before,
        };
    }

    /// It was created, or found: its id is to be made durable before anything else is done.
    pub fn made(&mut self, thing: Thing, id: String) {
        *self.of_mut(thing) = Creation::There { id, is_ready: false };
    }

    /// A look found nothing.
    pub const fn missed(&mut self, thing: Thing) {
        if let Creation::Sent { looks, .. } = self.of_mut(thing) {
            *looks += 1;
        }
    }

    /// No look will find it.
    pub const fn give_up_looking(&mut self, thing: Thing) {
        if let Creation::Sent { looks, .. } = self.of_mut(thing) {
            *looks = LOOKS_MAX;
        }
    }

    /// A file can be used.
    pub const fn ready(&mut self, thing: Thing) {
        if let Creation::There { is_ready, .. } = self.of_mut(thing) {
            *is_ready = true;
        }
    }

    /// Whether the provider was asked to end the job.
    pub const fn ask_to_end(&mut self, asked: bool) {
        self.asked_to_end = asked;
    }
}

impl Creation {
    /// Whether it may be there, and was not looked for often enough.
    const fn may_be_found(&self) -> bool {
        matches!(self, Self::Sent { looks, .. } if *looks < LOOKS_MAX)
    }
}

impl Thing {
    /// The data that such a file holds; none for the job, and for data that the fine-tune has none of.
    pub const fn data(self, plan: &FineTune) -> Option<&TuningData> {
        match self {
            Self::Training => Some(&plan.training),
            Self::Validation => plan.validation.as_ref(),
            Self::Job => None,
        }
    }

    /// The name under which it is uploaded, which nothing else has; none for what is not uploaded.
    pub fn upload_name(self, plan: &FineTune, job: JobId) -> Option<String> {
        let name = |data: &TuningData, role| match data {
            TuningData::Local { stem, .. } => Some(TuningData::upload_name(stem, role, job)),
            TuningData::Uploaded { .. } => None,
        };
        let own = name(self.data(plan)?, "")?;
        let is_taken = self == Self::Validation && name(&plan.training, "").as_ref() == Some(&own);
        if is_taken { name(self.data(plan)?, "-validation") } else { Some(own) }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Training => "training file",
            Self::Validation => "validation file",
            Self::Job => "fine-tune",
        }
    }
}

/// How long to wait before the next poll of what has been watched for so long. `dice` is uniform in `0.0..1.0`.
pub fn poll_wait(watched: Duration, dice: f64) -> Duration {
    // Spread downwards, so that the bounds hold.
    let spread = 1.0 - 0.2 * dice.clamp(0.0, 1.0);
    watched.mul_f64(POLL_SHARE).clamp(POLL_FIRST, POLL_LONGEST).mul_f64(spread)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, json};

    use super::*;
    use crate::domain::TuningApi;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn local(file: &str) -> TuningData {
        TuningData::Local { file: file.to_owned(), stem: "s".to_owned(), bytes: 1 }
    }

    fn plan(validation: Option<TuningData>) -> FineTune {
        FineTune {
            custom_id: "c".to_owned(),
            api: TuningApi::Jobs,
            training: local("training.jsonl"),
            validation,
            body: Map::new(),
            delete_uploads: true,
        }
    }

    /// What a step meets.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Fate {
        Fine,
        /// It was done, and nobody was told.
        ReplyLost,
        /// It was not done, and nobody was told that either.
        Lost,
        /// It was certainly not done.
        Refused,
        /// The process dies before the exchange, behind it, or behind the memo; `bool`: the exchange was done.
        Crash(Moment),
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Moment {
        BeforeIntent,
        BeforeExchange,
        BehindExchange,
        BehindMemo,
    }

    fn fate() -> impl Strategy<Value = Fate> {
        prop_oneof![
            3 => Just(Fate::Fine),
            2 => Just(Fate::ReplyLost),
            1 => Just(Fate::Lost),
            1 => Just(Fate::Refused),
            1 => Just(Fate::Crash(Moment::BeforeIntent)),
            1 => Just(Fate::Crash(Moment::BeforeExchange)),
            1 => Just(Fate::Crash(Moment::BehindExchange)),
            1 => Just(Fate::Crash(Moment::BehindMemo)),
        ]
    }

    /// The provider, and what is durable on this side.
    #[derive(Debug, Default)]
    struct Model {
        there: Vec<Thing>,
        memo: Option<Vec<u8>>,
        /// The job has come to its end, by itself or because it was asked to.
        ended: bool,
        polls: u32,
        created_though_to_end: bool,
    }

    impl Model {
        fn load(&self, plan: &FineTune) -> Progress {
            match &self.memo {
                None => Progress::new(plan),
                Some(memo) => Progress::read(memo, plan).unwrap(),
            }
        }

        /// Carries a step out; none if the process died.
        fn take(&mut self, step: Step, mut progress: Progress, wish: Wish, fate: Fate) -> Option<Progress> {
            let dies = |moment| fate == Fate::Crash(moment);
            let is_told = !matches!(fate, Fate::ReplyLost | Fate::Lost | Fate::Refused);
            if dies(Moment::BeforeIntent) {
                return None;
            }
            match step {
                Step::Create(thing) => {
                    let before = progress.begin(thing, NOW);
                    self.memo = Some(progress.to_memo());
                    if dies(Moment::BeforeExchange) {
                        return None;
                    }
                    if !matches!(fate, Fate::Lost | Fate::Refused) {
                        self.there.push(thing);
                        self.created_though_to_end |= wish == Wish::End;
                    }
                    if dies(Moment::BehindExchange) {
                        return None;
                    }
                    if fate == Fate::Refused {
                        progress.take_back(thing, before);
                    } else if is_told {
                        progress.made(thing, format!("{thing:?}"));
                    }
                    self.memo = Some(progress.to_memo());
                }
                Step::Find(thing) if is_told => {
                    if self.there.contains(&thing) {
                        progress.made(thing, format!("{thing:?}"));
                        self.memo = Some(progress.to_memo());
                    } else {
                        progress.missed(thing);
                    }
                }
                Step::Await(thing) if is_told => progress.ready(thing),
                Step::Poll if is_told => {
                    self.polls += 1;
                    self.ended |= self.polls > 3;
                }
                Step::Cancel => {
                    self.ended |= fate != Fate::Lost && fate != Fate::Refused;
                    progress.ask_to_end(is_told);
                }
                Step::Find(_) | Step::Await(_) | Step::Poll | Step::Rest => {}
            }
            (!dies(Moment::BehindMemo)).then_some(progress)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn nothing_is_created_twice_and_it_ends_whatever_happens(
            fates in prop::collection::vec(fate(), 0..40),
            end_at in prop::option::of(0usize..30),
            has_validation: bool,
        ) {
            let plan = plan(has_validation.then(|| local("validation.jsonl")));
            let mut model = Model::default();
            let mut progress = model.load(&plan);
            let mut rested = false;
            for at in 0..fates.len() + 40 {
                let wish = if end_at.is_some_and(|end| at >= end) { Wish::End } else { Wish::Run };
                let step = progress.next(&plan, wish);
                rested = step == Step::Rest;
                if rested || (model.ended && step == Step::Poll) {
                    break;
                }
                let fate = fates.get(at).copied().unwrap_or(Fate::Fine);
                progress = model.take(step, progress, wish, fate).unwrap_or_else(|| model.load(&plan));
            }
            for thing in [Thing::Training, Thing::Validation, Thing::Job] {
                let created = model.there.iter().filter(|there| **there == thing).count();
                prop_assert!(created <= 1, "{thing:?}: {model:?}");
            }
            let job_is_there = model.there.contains(&Thing::Job);
            prop_assert!(rested && !job_is_there || model.ended && !rested, "{model:?} {progress:?}");
            prop_assert!(!rested || end_at.is_some());
            prop_assert!(!model.created_though_to_end);
            // What is to be deleted is known.
            let uploaded = model.there.iter().filter(|there| **there != Thing::Job).count();
            prop_assert_eq!(progress.uploads(&plan).count(), uploaded);
        }
    }

    #[test]
    fn a_memo_of_another_batchd_is_read_and_one_that_is_lost_creates_nothing_unseen() {
        let plan = plan(Some(TuningData::Uploaded { id: "file-v".to_owned() }));
        let memo = json!({"training": {"state": "there", "id": "file-t", "new": 1}, "more": {}}).to_string();
        let progress = Progress::read(memo.as_bytes(), &plan).unwrap();
        assert_eq!(progress.uploads(&plan).collect::<Vec<_>>(), ["file-t"]);
        assert_eq!(progress.id_of(Thing::Validation), Some("file-v"));
        assert_eq!(progress.next(&plan, Wish::Run), Step::Await(Thing::Training));
        assert_eq!(Progress::read(&progress.to_memo(), &plan), Some(progress));

        assert_eq!(Progress::read(b"{\"job\":7}", &plan), None);
        let mut lost = Progress::lost(&plan, NOW);
        for thing in [Thing::Training, Thing::Job] {
            assert_eq!(lost.next(&plan, Wish::Run), Step::Find(thing));
            lost.give_up_looking(thing);
        }
        assert_eq!(lost.next(&plan, Wish::Run), Step::Create(Thing::Training));
    }

    #[test]
    fn what_was_never_certain_is_looked_for_again_behind_a_refusal() {
        let plan = plan(None);
        let mut progress = Progress::new(&plan);
        progress.begin(Thing::Training, NOW);
        progress.give_up_looking(Thing::Training);
        assert_eq!(progress.next(&plan, Wish::Run), Step::Create(Thing::Training));
        let before = progress.begin(Thing::Training, NOW + Duration::from_secs(9));
        let first = Creation::Sent { at: NOW, looks: 0 };
        assert_eq!(progress.of(Thing::Training), &first, "the first of them may be there, too");
        progress.take_back(Thing::Training, before);
        assert_eq!(progress.next(&plan, Wish::Run), Step::Find(Thing::Training));
        assert_eq!(progress.of(Thing::Training), &Creation::Sent { at: NOW, looks: LOOKS_MAX - 1 });
    }

    #[test]
    fn looks_spread_over_seconds() {
        let plan = plan(None);
        let mut progress = Progress::new(&plan);
        progress.begin(Thing::Job, NOW);
        let waits = (0..LOOKS_MAX).map(|_| {
            let wait = progress.wait_before_look(Thing::Job);
            progress.missed(Thing::Job);
            wait.as_secs()
        });
        assert_eq!(waits.collect::<Vec<_>>(), [0, 1, 3]);
        assert_eq!(LOOKS.len(), LOOKS_MAX as usize);
    }

    #[test]
    fn polls_begin_within_a_second_and_grow_to_a_minute() {
        for dice in [0.0, 0.5, 1.0] {
            assert!(poll_wait(Duration::ZERO, dice) <= Duration::from_secs(1));
            assert!(poll_wait(Duration::ZERO, dice) >= Duration::from_millis(800));
            assert!(poll_wait(Duration::from_hours(9), dice) <= Duration::from_mins(1));
        }
        let (mut now, mut seen_of_four_seconds) = (Duration::ZERO, None);
        for _ in 0..100 {
            now += poll_wait(now, 0.0);
            if now >= Duration::from_secs(4) {
                seen_of_four_seconds.get_or_insert(now);
            }
        }
        assert!(seen_of_four_seconds.unwrap() < Duration::from_secs(6), "{seen_of_four_seconds:?}");
        assert!(now > Duration::from_mins(30), "{now:?}");
    }

    #[test]
    fn the_two_files_of_a_fine_tune_never_share_a_name() {
        let job = JobId::from_bytes([1; 16]);
        let named = |stem: &str| TuningData::Local { file: String::new(), stem: stem.to_owned(), bytes: 1 };
        let names = |training: &str, validation: &str| {
            let plan = FineTune { training: named(training), ..plan(Some(named(validation))) };
            [Thing::Training, Thing::Validation].map(|thing| thing.upload_name(&plan, job).unwrap())
        };
        let [training, validation] = names("data", "data");
        assert_eq!(training, format!("data-{job}.jsonl"));
        assert_eq!(validation, format!("data-validation-{job}.jsonl"));
        let long = "x".repeat(500);
        for [a, b] in [["a b", "a_b"], [&format!("{long}1"), &format!("{long}2")], ["a", "b"]] {
            let [training, validation] = names(a, b);
            assert_ne!(training, validation);
        }
        assert_eq!(names("a", "b")[1], format!("b-{job}.jsonl"));
        let given = plan(Some(TuningData::Uploaded { id: "file-1".to_owned() }));
        assert_eq!(Thing::Validation.upload_name(&given, job), None);
    }
}
