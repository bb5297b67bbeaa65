//! A lane's pace against model servers, in a time of its own: minutes of traffic in milliseconds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use fastrand::Rng;

use super::*;
use crate::dispatch::estimate::Estimate;

/// How a server says when to come back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Hint {
    None,
    /// `retry-after-ms`.
    Exact,
    /// `Retry-After` in whole seconds.
    Seconds,
}

/// What a server counts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// A bucket that holds so many seconds' worth.
    Bucket(f64),
    /// All of it is there again at each full minute.
    Window,
}

/// A server that admits so many units a minute.
#[derive(Clone, Debug)]
struct Server {
    per_minute: f64,
    kind: Kind,
    hint: Hint,
    has_headers: bool,
    /// The share that it refuses by chance, with a hint of a second.
    chance: f64,
    latency: f64,
    /// Until a refusal is here.
    refusal: f64,
    /// Units a second that others use.
    others: f64,
    /// Counts tokens, not requests.
    counts_tokens: bool,
    level: f64,
    filled_at: f64,
}

impl Server {
    fn new(per_minute: f64) -> Self {
        Self {
            per_minute,
            kind: Kind::Bucket(1.0),
            hint: Hint::Exact,
            has_headers: false,
            chance: 0.0,
            latency: 0.1,
            refusal: 0.02,
            others: 0.0,
            counts_tokens: false,
            level: f64::INFINITY,
            filled_at: 0.0,
        }
    }

    fn capacity(&self) -> f64 {
        match self.kind {
            Kind::Bucket(seconds) => (self.per_minute / 60.0 * seconds).max(1.0),
            Kind::Window => self.per_minute,
        }
    }

    fn fill(&mut self, now: f64) {
        let elapsed = now - self.filled_at;
        match self.kind {
            Kind::Bucket(_) => self.level += elapsed * self.per_minute / 60.0,
            Kind::Window if (now / 60.0).floor() > (self.filled_at / 60.0).floor() => {
                self.level = f64::INFINITY;
            }
            Kind::Window => {}
        }
        self.level = self.level.min(self.capacity());
        // The others are let in as far as there is something.
        self.level -= (elapsed * self.others).min(self.level.max(0.0));
        self.filled_at = now;
    }

    /// Seconds until `cost` would be admitted; none if at once.
    fn admit(&mut self, cost: f64, now: f64) -> Option<f64> {
        self.fill(now);
        if self.level + 1e-9 >= cost.min(self.capacity()) {
            self.level -= cost;
            return None;
        }
        Some(match self.kind {
            Kind::Bucket(_) => (cost.min(self.capacity()) - self.level) / (self.per_minute / 60.0),
            Kind::Window => 60.0 - now % 60.0,
        })
    }

    fn rate(&self, now: f64) -> RateHeaders {
        if !self.has_headers {
            return RateHeaders::default();
        }
        let reset = match self.kind {
            Kind::Bucket(_) => (self.capacity() - self.level) / (self.per_minute / 60.0),
            Kind::Window => 60.0 - now % 60.0,
        };
        let (limit, remaining) = (Some(whole(self.per_minute)), Some(whole(self.level.max(0.0))));
        let reset = Some(Duration::from_secs_f64(reset));
        if self.counts_tokens {
            RateHeaders {
                limit_tokens: limit,
                remaining_tokens: remaining,
                reset_tokens: reset,
                ..Default::default()
            }
        } else {
            RateHeaders {
                limit_requests: limit,
                remaining_requests: remaining,
                reset_requests: reset,
                ..Default::default()
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test's figures")]
fn whole(number: f64) -> u64 {
    number as u64
}

/// A reply on its way.
#[derive(Debug)]
struct Reply {
    at: f64,
    number: u64,
    ended: Ended,
}

impl PartialEq for Reply {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Reply {}
impl PartialOrd for Reply {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Reply {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.total_cmp(&other.at).then(self.number.cmp(&other.number))
    }
}

/// What came of a stretch.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sent: f64,
    refused: f64,
    /// In the server's units.
    admitted: f64,
}

impl Tally {
    fn refused_share(self) -> f64 {
        self.refused / self.sent
    }
}

struct World {
    pace: Pace,
    server: Server,
    slots: usize,
    start: Instant,
    now: f64,
    replies: BinaryHeap<Reverse<Reply>>,
    dice: Rng,
    tokens: std::ops::Range<u64>,
    sent_at: Vec<f64>,
}

impl World {
    fn new(server: Server) -> Self {
        Self {
            pace: Pace::new(QueueName::new("p", None)),
            server,
            slots: 512,
            start: Instant::now(),
            now: 0.0,
            replies: BinaryHeap::new(),
            dice: Rng::with_seed(7),
            tokens: 1..2,
            sent_at: Vec::new(),
        }
    }

    fn instant(&self, at: f64) -> Instant {
        self.start + Duration::from_secs_f64(at)
    }

    /// Sends as much as it may for `seconds`.
    fn run(&mut self, seconds: f64) -> Tally {
        let end = self.now + seconds;
        let mut tally = Tally::default();
        let mut next = self.dice.u64(self.tokens.clone());
        loop {
            let now = self.instant(self.now);
            let ready = self.pace.ready_at(next, now).duration_since(self.start).as_secs_f64();
            let answer = self.replies.peek().map_or(f64::INFINITY, |Reverse(reply)| reply.at);
            let ready = if self.replies.len() >= self.slots { f64::INFINITY } else { ready };
            if ready.min(answer) >= end {
                self.now = end;
                return tally;
            }
            if answer <= ready {
                let Reverse(reply) = self.replies.pop().unwrap();
                self.now = self.now.max(reply.at);
                self.pace.on_ended(&reply.ended, self.instant(self.now));
                continue;
            }
            // A timer fires up to a millisecond late.
            self.now = if ready > self.now { ready + self.dice.f64() * 1e-3 } else { self.now };
            if self.pace.ready_at(next, self.instant(self.now)) > self.instant(self.now) {
                self.now += 1e-4;
                continue;
            }
            self.send(next, &mut tally);
            next = self.dice.u64(self.tokens.clone());
        }
    }

    fn send(&mut self, tokens: u64, tally: &mut Tally) {
        let sent_at = self.instant(self.now);
        let number = self.pace.spend(tokens, sent_at);
        self.sent_at.push(self.now);
        let cost = if self.server.counts_tokens { amount(tokens) } else { 1.0 };
        let wait =
            if self.dice.f64() < self.server.chance { Some(1.0) } else { self.server.admit(cost, self.now) };
        tally.sent += 1.0;
        let (kind, took) = match wait {
            None => {
                tally.admitted += cost;
                (EndedKind::Served, self.server.latency)
            }
            Some(wait) => {
                tally.refused += 1.0;
                let retry_after = match self.server.hint {
                    Hint::None => None,
                    Hint::Exact => Some(Duration::from_secs_f64((wait * 1e3).ceil() / 1e3)),
                    Hint::Seconds => Some(Duration::from_secs_f64(wait.ceil())),
                };
                let short_of = if self.server.counts_tokens { Shortage::Tokens } else { Shortage::Requests };
                (EndedKind::Throttled { retry_after, short_of }, self.server.refusal)
            }
        };
        let at = self.now + took * (1.0 + self.dice.f64() * 0.1);
        let exchange = Exchange { sent_at, answered_at: self.instant(at), rate: self.server.rate(self.now) };
        let ended = Ended {
            kind,
            number,
            exchange: Some(exchange),
            estimate: Estimate::default(),
            ..Ended::in_lane(0)
        };
        self.replies.push(Reverse(Reply { at, number, ended }));
    }
}

/// What is to come of a minute: at least this use, at most this share refused.
fn assert_minute(world: &mut World, used: f64, refused: f64, what: &str) {
    let allowed = world.server.per_minute - world.server.others * 60.0;
    let tally = world.run(60.0);
    let share = tally.admitted / allowed;
    let text = format!("{what}: {:.1} % used, {:.1} % refused", share * 100.0, tally.refused_share() * 100.0);
    assert!(share >= used && tally.refused_share() <= refused, "{text}");
}

#[test]
fn a_limit_that_headers_tell_is_used_and_hardly_ever_reached() {
    for per_minute in [60.0, 600.0, 3_000.0, 30_000.0] {
        // The first ten meet a bucket that may hold one.
        let refused = if per_minute < 100.0 { 0.14 } else { 0.01 };
        for (kind, latency) in [(Kind::Bucket(1.0), 0.1), (Kind::Bucket(60.0), 0.1), (Kind::Window, 0.1)] {
            let server = Server { kind, latency, has_headers: true, ..Server::new(per_minute) };
            let mut world = World::new(server);
            assert_minute(&mut world, 0.95, refused, &format!("{per_minute} {kind:?}"));
            world.server.per_minute /= 2.0;
            world.run(2.0);
            assert_minute(&mut world, 0.84, refused, &format!("{per_minute} {kind:?} halved"));
            world.server.per_minute *= 2.0;
            // What is left of a window stays as it is.
            world.run(if kind == Kind::Window { 60.0 } else { 2.0 });
            assert_minute(&mut world, 0.84, 0.01, &format!("{per_minute} {kind:?} doubled"));
        }
    }
}

#[test]
fn answers_that_take_long_are_no_hindrance() {
    let server = Server { latency: 5.0, has_headers: true, ..Server::new(3_000.0) };
    let mut world = World::new(server);
    world.run(60.0);
    assert_minute(&mut world, 0.95, 0.01, "3000 in 5 s");
}

#[test]
fn a_limit_that_nobody_tells_is_found_by_being_refused() {
    for hint in [Hint::None, Hint::Exact, Hint::Seconds] {
        for latency in [0.1, 5.0] {
            let what = format!("{hint:?} {latency}");
            let mut world = World::new(Server { hint, latency, ..Server::new(3_000.0) });
            world.slots = 2_000;
            assert_minute(&mut world, 0.9, 0.03, &what);
            assert_minute(&mut world, 0.95, 0.01, &what);
            world.server.per_minute = 1_500.0;
            world.run(60.0);
            assert_minute(&mut world, 0.9, 0.03, &format!("{what} halved"));
            world.server.per_minute = 3_000.0;
            world.run(60.0);
            assert_minute(&mut world, 0.9, 0.03, &format!("{what} doubled"));
        }
    }
}

#[test]
fn slow_and_fast_limits_are_found_too() {
    for (per_minute, used, refused) in
        [(3.0, 0.6, 0.7), (60.0, 0.7, 0.2), (600.0, 0.9, 0.04), (30_000.0, 0.9, 0.1)]
    {
        let mut world = World::new(Server::new(per_minute));
        world.slots = 4_000;
        world.run(60.0);
        assert_minute(&mut world, used, refused, &format!("{per_minute}"));
    }
}

#[test]
fn tokens_are_paced_as_requests_are() {
    for has_headers in [true, false] {
        let server = Server { counts_tokens: true, has_headers, ..Server::new(600_000.0) };
        let mut world = World::new(server);
        world.tokens = 50..350;
        world.run(30.0);
        assert_minute(&mut world, 0.9, 0.03, &format!("tokens, headers {has_headers}"));
        assert!(world.pace.limits().1.is_some());
    }
}

#[test]
fn others_who_use_the_key_are_made_room_for() {
    for kind in [Kind::Bucket(1.0), Kind::Bucket(60.0)] {
        let server = Server { kind, others: 25.0, has_headers: true, ..Server::new(3_000.0) };
        let mut world = World::new(server);
        world.run(60.0);
        assert_minute(&mut world, 0.9, 0.03, &format!("{kind:?} shared"));
        world.server.others = 0.0;
        world.run(20.0);
        assert_minute(&mut world, 0.94, 0.01, &format!("{kind:?} alone again"));
    }
}

#[test]
fn refusals_by_chance_stop_nothing() {
    for (chance, latency, least) in
        [(0.01, 0.1, 600.0), (0.05, 0.1, 550.0), (0.05, 5.0, 115.0), (0.1, 0.1, 300.0)]
    {
        let server = Server { chance, latency, refusal: 0.0, ..Server::new(1e9) };
        let mut world = World::new(server);
        world.slots = if latency < 1.0 { 64 } else { 640 };
        world.run(150.0);
        let rate = world.run(60.0).admitted / 60.0;
        assert!(rate > least, "{chance} {latency}: {rate}");
    }
}

#[test]
fn nothing_is_sent_before_the_time_that_every_reply_names() {
    let mut world = World::new(Server { chance: 1.0, ..Server::new(3_000.0) });
    let tally = world.run(20.0);
    assert!((25.0..32.0).contains(&tally.sent), "the first ten, and then one a second: {tally:?}");
    let late: Vec<f64> = world.sent_at.windows(2).map(|pair| pair[1] - pair[0]).skip(11).collect();
    assert!(late.iter().all(|gap| *gap >= 1.0), "{late:?}");
    // As soon as one is served it goes on.
    world.server.chance = 0.0;
    assert!(world.run(20.0).admitted > 500.0);
}

#[test]
fn the_first_requests_are_spread_and_not_held_back_for_long() {
    let mut world = World::new(Server { latency: 10.0, ..Server::new(1e9) });
    world.run(5.0);
    let sent_by = |time: f64| world.sent_at.iter().filter(|at| **at < time).count();
    assert!((10..=12).contains(&sent_by(0.1)), "{}", sent_by(0.1));
    assert!((64..=100).contains(&sent_by(2.0)), "without any answer: {}", sent_by(2.0));
    let mut quick = World::new(Server { latency: 0.01, ..Server::new(1e9) });
    quick.run(1.0);
    let sent_by = |time: f64| quick.sent_at.iter().filter(|at| **at < time).count();
    assert!(sent_by(0.005) <= 11 && sent_by(0.1) >= 500, "twice as many in each round: {}", sent_by(0.1));
}

/// What a lane makes of replies with these headers to its first requests, a second each.
fn told(headers: &[RateHeaders]) -> Option<f64> {
    let mut pace = Pace::new(QueueName::new("p", None));
    let start = Instant::now();
    for (at, rate) in headers.iter().enumerate() {
        let sent_at = start + Duration::from_secs(at as u64);
        let number = pace.spend(1, sent_at);
        let exchange = Some(Exchange { sent_at, answered_at: sent_at, rate: *rate });
        pace.on_ended(&Ended { number, exchange, ..Ended::in_lane(0) }, sent_at);
    }
    pace.limits().0
}

fn header(limit: u64, remaining: u64, reset: u64) -> RateHeaders {
    let reset_requests = Some(Duration::from_secs(reset));
    RateHeaders {
        limit_requests: Some(limit),
        remaining_requests: Some(remaining),
        reset_requests,
        ..RateHeaders::default()
    }
}

#[test]
fn headers_are_taken_for_what_they_mean() {
    assert_eq!(told(&[header(60, 59, 1)]), Some(60.0));
    assert_eq!(told(&[header(60, 59, 1), header(600, 599, 1)]), Some(600.0), "at once");
    assert_eq!(told(&[header(200, 199, 432)]), None, "a day's limit says nothing of a minute");
    assert_eq!(
        told(&[header(14_400, 14_399, 6), header(14_400, 14_370, 180)]),
        None,
        "nor does one seen late"
    );
    assert_eq!(told(&[header(0, 0, 0)]), None);
    assert_eq!(told(&[header(u64::MAX, u64::MAX, 0)]), None);
}

#[test]
fn a_reply_that_comes_late_tells_no_news() {
    let mut pace = Pace::new(QueueName::new("p", None));
    let now = Instant::now();
    let numbers: Vec<u64> = (0..2).map(|_| pace.spend(1, now)).collect();
    for (number, limit) in [(numbers[1], 600), (numbers[0], 60)] {
        let exchange = Some(Exchange { sent_at: now, answered_at: now, rate: header(limit, 1, 1) });
        pace.on_ended(&Ended { number, exchange, ..Ended::in_lane(0) }, now);
    }
    assert_eq!(pace.limits().0, Some(600.0));
}

#[test]
fn what_is_proven_wrong_holds_nothing() {
    let mut pace = Pace::new(QueueName::new("p", None));
    let now = Instant::now();
    let numbers: Vec<u64> = (0..2).map(|_| pace.spend(1, now)).collect();
    let (retry_after, short_of) = (Some(Duration::from_hours(5)), Shortage::Requests);
    let refused = EndedKind::Throttled { retry_after, short_of };
    pace.on_ended(&Ended { kind: refused, number: numbers[0], ..Ended::in_lane(0) }, now);
    assert_eq!(pace.ready_at(1, now), now + Duration::from_hours(5));
    pace.on_ended(&Ended { number: numbers[1], ..Ended::in_lane(0) }, now);
    let ready_at = pace.ready_at(1, now);
    assert!(ready_at < now + Duration::from_secs(1), "one that was sent after it is served");
}

#[test]
fn a_person_ends_a_hold_and_one_goes_ahead() {
    let mut pace = Pace::new(QueueName::new("p", None));
    let now = Instant::now();
    let number = pace.spend(1, now);
    let (retry_after, short_of) = (Some(Duration::from_hours(5)), Shortage::Requests);
    let refused = EndedKind::Throttled { retry_after, short_of };
    pace.on_ended(&Ended { kind: refused, number, ..Ended::in_lane(0) }, now);
    let later = now + Duration::from_mins(1);
    assert_eq!(pace.ready_at(1, later), now + Duration::from_hours(5));
    pace.resume(later);
    assert!(pace.ready_at(1, later) < later + Duration::from_secs(1));
    let scout = pace.spend(1, later);
    assert!(pace.ready_at(1, later) > later, "and no other before it is known what became of it");
    pace.on_ended(&Ended { kind: refused, number: scout, ..Ended::in_lane(0) }, later);
    assert_eq!(pace.ready_at(1, later), later + Duration::from_hours(5), "a new refusal holds anew");
}

#[test]
fn a_limit_that_was_raised_is_remembered_as_it_is() {
    let mut world = World::new(Server::new(1_500.0));
    world.run(60.0);
    let before = world.pace.learnt().0.unwrap();
    assert!((1_200.0..=1_800.0).contains(&before), "{before}");
    world.server.per_minute = 1e9;
    world.run(20.0);
    let after = world.pace.learnt().0.unwrap();
    assert!((1.2..=2.0).contains(&(after / before)), "{before} and then {after}");
}

#[test]
fn a_limit_of_a_day_leaves_the_rate_alone_when_it_is_over() {
    let mut world = World::new(Server::new(1e9));
    world.slots = 8;
    world.run(60.0);
    let mut refused = 0;
    while refused < 20 {
        let now = world.instant(world.now);
        let number = world.pace.spend(1, now);
        let kind = EndedKind::Throttled {
            retry_after: Some(Duration::from_hours(24)),
            short_of: Shortage::Requests,
        };
        world.pace.on_ended(&Ended { kind, number, ..Ended::in_lane(0) }, now);
        refused += 1;
    }
    assert!(world.pace.ready_at(1, world.instant(world.now)) > world.instant(world.now + 86_000.0));
    world.now += 86_401.0;
    world.run(60.0);
    assert!(world.run(10.0).admitted > 300.0);
}
