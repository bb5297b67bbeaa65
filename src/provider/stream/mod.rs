//! Answers that come as a stream of events, and are put together into the body that the server would have sent in one
//! piece: a record does not show how its answer came.
//!
//! # Operation
//!
//! [`question`] adds to a request what asks for a stream. A [`Receiving`] then takes the reply's body as it comes:
//! `events` finds the events in it, `assemble` joins their chunks. What a body is shows in its first byte, because there
//! are servers that ignore `stream`, and proxies that call everything an event stream: events begin with the name of
//! a field, JSON and HTML with a bracket, and are then kept as they are.
//!
//! A stream is whole when `[DONE]` has come, or when it has ended and every choice that was asked for says why it
//! ended: some servers leave `[DONE]` out, and some break the connection in its place. All else is a cut reply,
//! which is never an answer. So is a stream with an error in it, wherever it stands.
//!
//! # Invariants
//!
//! - Neither an event nor what is put together is larger than the provider's `max_reply` (P5); the events of
//!   an answer together may be, since each is forgotten once it is taken in.
//! - Whatever moves is life: comments, which servers send while they think, put off the end of a connection that
//!   stands still (the provider's idle time-out, else [`STILL_MAX`]) as chunks do. Before the first byte the
//!   time-out of the whole exchange alone holds: a server may read a long prompt in silence.

mod ask;
mod assemble;
mod events;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
mod node;

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;

use crate::domain::record::text_of;
use crate::domain::{Endpoint, Outcome, Timestamp};
use crate::provider::classify::{classify, classify_event, classify_transport, senseless};
use crate::provider::retry_after::rate_headers;
use crate::provider::{HttpReply, Receiver, Reply, TransportError};
use crate::reading::json::{Member, members};
use assemble::Assembly;
use events::{Event, Events, TooLong};
use node::Unfit;

pub(super) use ask::question;

/// How long a stream that has begun may stand still: models pause for seconds, servers that think send comments.
pub(super) const STILL_MAX: Duration = Duration::from_mins(2);

/// What the last event of a stream says.
const DONE: &[u8] = b"[DONE]";

/// What came of an exchange.
#[derive(Debug)]
pub(super) enum Came {
    /// A reply in one piece, or as if it had come so.
    Reply(HttpReply),
    /// An event that says what went wrong stands in the place of the body.
    Error(HttpReply),
    /// A stream of which nothing can be made, and why.
    Senseless(HttpReply, &'static str),
    /// No whole reply; of one that had begun, its headers.
    Broken(TransportError, HeaderMap),
}

impl Came {
    /// Its reply, before it is read.
    pub(super) const fn reply_mut(&mut self) -> Option<&mut HttpReply> {
        match self {
            Self::Reply(reply) | Self::Error(reply) | Self::Senseless(reply, _) => Some(reply),
            Self::Broken(..) => None,
        }
    }

    /// What it means for a request to `endpoint`.
    pub(super) fn classify(&self, endpoint: Endpoint, now: Timestamp) -> Reply {
        let without_usage = |outcome: Outcome, headers: &HeaderMap| Reply {
            outcome,
            usage: None,
            rate: rate_headers(headers),
        };
        match self {
            Self::Reply(reply) => classify(endpoint, reply, now),
            Self::Error(reply) => without_usage(classify_event(reply, now), &reply.headers),
            Self::Senseless(reply, why) => without_usage(senseless(reply.status, why), &reply.headers),
            Self::Broken(error, headers) => without_usage(classify_transport(error), headers),
        }
    }
}

impl From<Result<HttpReply, TransportError>> for Came {
    fn from(exchanged: Result<HttpReply, TransportError>) -> Self {
        exchanged.map_or_else(|error| Self::Broken(error, HeaderMap::new()), Self::Reply)
    }
}

/// Takes a reply that may be a stream.
#[derive(Debug)]
pub(super) struct Receiving {
    /// How many choices the answer has if it is whole.
    choices: u64,
    reply_bytes_max: u64,
    bytes_max: usize,
    /// Of a 2xx.
    head: Option<(u16, HeaderMap)>,
    form: Form,
    assembly: Assembly,
    end: Option<End>,
}

/// What the body is.
#[derive(Debug)]
enum Form {
    /// Nothing but white space has come.
    Unknown,
    Plain(Vec<u8>),
    Events(Events),
}

/// Why the rest of the body is of no use.
#[derive(Debug)]
enum End {
    Done,
    /// Holds the event's data.
    Error(Vec<u8>),
    Senseless(&'static str),
    TooLarge,
}

impl Receiving {
    /// For the answer of `endpoint` to a request for so many `choices`.
    pub(super) fn new(endpoint: Endpoint, choices: u64, reply_bytes_max: u64) -> Self {
        let bytes_max = usize::try_from(reply_bytes_max).unwrap_or(usize::MAX);
        Self {
            choices,
            reply_bytes_max,
            bytes_max,
            head: None,
            form: Form::Unknown,
            assembly: Assembly::new(endpoint, bytes_max),
            end: None,
        }
    }

    /// What has come once the exchange has ended, as `exchanged` says.
    pub(super) fn finish(mut self, exchanged: Result<HttpReply, TransportError>) -> Came {
        let Some((status, headers)) = self.head.take() else { return exchanged.into() };
        if let (Form::Events(events), Ok(_), None) = (&mut self.form, &exchanged, &self.end) {
            events.rest(&mut |event| on_event(event, &mut self.assembly, &mut self.end));
            // Half an event is no event.
            if matches!(self.end, Some(End::Senseless(_))) {
                self.end = None;
            }
        }
        let reply = |body: Bytes| HttpReply { status, headers: headers.clone(), body };
        let too_large = TransportError::TooLarge(self.reply_bytes_max);
        let is_whole = match (self.end, self.form) {
            (Some(End::TooLarge), _) => return Came::Broken(too_large, headers),
            (Some(End::Error(data)), _) => return Came::Error(reply(data.into())),
            (Some(End::Senseless(why)), _) => return Came::Senseless(reply(Bytes::new()), why),
            (Some(End::Done), _) => true,
            (None, Form::Events(_)) => self.assembly.is_finished(self.choices),
            (None, Form::Plain(body)) => return exchanged.map(|_| reply(body.into())).into(),
            (None, Form::Unknown) => return exchanged.map(|_| reply(Bytes::new())).into(),
        };
        if !is_whole {
            let cut = || TransportError::Cut("the stream ended before the answer did".to_owned());
            return Came::Broken(exchanged.err().unwrap_or_else(cut), headers);
        }
        match self.assembly.into_body(self.bytes_max) {
            Some(body) => Came::Reply(reply(body.into())),
            None => Came::Broken(too_large, headers),
        }
    }
}

impl Receiver for Receiving {
    fn begins(&mut self, status: u16, headers: &HeaderMap) -> bool {
        let is_success = (200..300).contains(&status);
        self.head = is_success.then(|| (status, headers.clone()));
        is_success
    }

    fn take(&mut self, piece: &[u8]) -> ControlFlow<()> {
        let mut piece = piece;
        if matches!(self.form, Form::Unknown) {
            piece = piece.trim_ascii_start();
            self.form = match piece.first() {
                None => return ControlFlow::Continue(()),
                Some(b'{' | b'[' | b'<') => Form::Plain(Vec::new()),
                Some(_) => Form::Events(Events::new(self.bytes_max)),
            };
        }
        let taken = match &mut self.form {
            Form::Unknown => return ControlFlow::Continue(()),
            Form::Plain(body) if body.len() + piece.len() > self.bytes_max => Err(TooLong),
            Form::Plain(body) => {
                body.extend_from_slice(piece);
                Ok(ControlFlow::Continue(()))
            }
            Form::Events(events) => {
                events.feed(piece, &mut |event| on_event(event, &mut self.assembly, &mut self.end))
            }
        };
        taken.unwrap_or_else(|TooLong| {
            self.end = Some(End::TooLarge);
            ControlFlow::Break(())
        })
    }
}

/// Takes an event into `assembly`, or says in `end` why it is the last.
fn on_event(event: Event<'_>, assembly: &mut Assembly, end: &mut Option<End>) -> ControlFlow<()> {
    let data = event.data.trim_ascii();
    let ended = if event.is_error {
        End::Error(data.to_vec())
    } else if data == DONE {
        End::Done
    } else if data.is_empty() {
        return ControlFlow::Continue(());
    } else {
        let text: Cow<'_, str> = text_of(data);
        let Ok(members) = members(&text) else {
            *end = Some(End::Senseless("an event of its stream is no JSON object"));
            return ControlFlow::Break(());
        };
        if is_error(&members) {
            End::Error(data.to_vec())
        } else {
            match assembly.add(&members) {
                Ok(()) => return ControlFlow::Continue(()),
                Err(Unfit::TooLarge) => End::TooLarge,
                Err(Unfit::TooMany) => End::Senseless("its stream has too many parts"),
                Err(Unfit::NoObject) => End::Senseless("an event of its stream is no part of an answer"),
            }
        }
    };
    *end = Some(ended);
    ControlFlow::Break(())
}

/// Whether an event is an error by what it holds; vLLM's of before 2025 have their members at the top.
fn is_error(members: &[Member<'_>]) -> bool {
    members.iter().any(|member| match &*member.key {
        "error" => !node::says_nothing(member.value),
        "object" => member.value == "\"error\"",
        _ => false,
    })
}

#[cfg(test)]
mod tests;
