//! Server-sent events: from the bytes of a body, in pieces of any size, to the data of each event.
//!
//! # Format
//!
//! WHATWG's "interpreting an event stream", as far as an answer needs it: lines end in CRLF, LF or CR; one that begins
//! with a colon is a comment; `data` lines of an event are joined by line ends; an empty line ends the event, which is
//! none without `data`; a byte order mark at the beginning is skipped. `event` matters where it says `error`; `id` and
//! `retry`, which are for connections that are made again, don't.
//!
//! Beyond it: a field called `error` (llama.cpp wrote one for years) is an event of that name, and what the end of the
//! body leaves open is an event of its own ([`Events::rest`]), since some servers forget the last empty line.
//!
//! # Invariants
//!
//! - At most [`Events::new`]'s bound of one event is kept, its unfinished line included (P5).
//! - Lines are cut as bytes, so that a character that two pieces share stays whole.

use std::mem;
use std::ops::ControlFlow;

use memchr::memchr2;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A whole event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event<'a> {
    /// It is called so.
    pub(super) is_error: bool,
    pub(super) data: &'a [u8],
}

/// An event is larger than the bound.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// Reads events out of pieces.
#[derive(Debug)]
pub(super) struct Events {
    bytes_max: usize,
    /// The line that has not ended.
    line: Vec<u8>,
    /// The last piece ended in a CR, whose LF may come.
    is_after_cr: bool,
    /// No line has ended.
    is_first: bool,
    /// Of the event that has not ended, each line of it with its end.
    data: Vec<u8>,
    is_error: bool,
}

impl Events {
    /// `bytes_max`: the most that one event may hold.
    pub(super) const fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            line: Vec::new(),
            is_after_cr: false,
            is_first: true,
            data: Vec::new(),
            is_error: false,
        }
    }

    /// Hands `take` each event that ends in `piece`, until it breaks; the rest of the piece is then lost.
    ///
    /// # Errors
    ///
    /// An event is larger than the bound.
    pub(super) fn feed(
        &mut self,
        mut piece: &[u8],
        take: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, TooLong> {
        // A piece may be empty: HTTP/2 knows such frames.
        if !piece.is_empty() && mem::take(&mut self.is_after_cr) {
            piece = piece.strip_prefix(b"\n").unwrap_or(piece);
        }
        while let Some((line, end)) = memchr2(b'\n', b'\r', piece).and_then(|at| piece.split_at_checked(at)) {
            let is_cr = end.starts_with(b"\r");
            self.is_after_cr = is_cr && end.len() == 1;
            let ended = if is_cr { end.strip_prefix(b"\r\n") } else { None };
            piece = ended.or_else(|| end.get(1..)).unwrap_or_default();
            let flow = if self.line.is_empty() {
                self.check(line.len())?;
                self.on_line(line, take)?
            } else {
                self.keep(line)?;
                let mut whole = mem::take(&mut self.line);
                let flow = self.on_line(&whole, take)?;
                // Its room is used again.
                whole.clear();
                self.line = whole;
                flow
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        self.keep(piece)?;
        Ok(ControlFlow::Continue(()))
    }

    /// What the end of the body has left open, as an event; nothing may be fed any more.
    pub(super) fn rest(&mut self, take: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>) {
        let line = mem::take(&mut self.line);
        // Too long for the bound only if it has been refused before.
        if self.on_line(&line, take).is_ok_and(|flow| flow.is_continue()) && !line.is_empty() {
            drop(self.on_line(b"", take));
        }
    }

    fn keep(&mut self, piece: &[u8]) -> Result<(), TooLong> {
        self.check(self.line.len() + piece.len())?;
        self.line.extend_from_slice(piece);
        Ok(())
    }

    fn check(&self, more: usize) -> Result<(), TooLong> {
        if self.data.len() + more > self.bytes_max { Err(TooLong) } else { Ok(()) }
    }

    fn on_line(
        &mut self,
        line: &[u8],
        take: &mut dyn FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, TooLong> {
        let is_first = mem::replace(&mut self.is_first, false);
        let line = line.strip_prefix(BYTE_ORDER_MARK).filter(|_| is_first).unwrap_or(line);
        if line.is_empty() {
            let is_error = mem::take(&mut self.is_error);
            let Some(data) = self.data.strip_suffix(b"\n") else { return Ok(ControlFlow::Continue(())) };
            let flow = take(Event { is_error, data });
            self.data.clear();
            return Ok(flow);
        }
        let colon = memchr::memchr(b':', line).unwrap_or(line.len());
        let (name, value) = line.split_at_checked(colon).unwrap_or((line, &[]));
        let value = value.strip_prefix(b":").unwrap_or(value);
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match name {
            b"data" => self.add(value)?,
            b"error" => {
                self.is_error = true;
                self.add(value)?;
            }
            b"event" => self.is_error = value == b"error",
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    }

    fn add(&mut self, value: &[u8]) -> Result<(), TooLong> {
        self.check(value.len() + 1)?;
        self.data.extend_from_slice(value);
        self.data.push(b'\n');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Found = Vec<(bool, String)>;

    fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Found {
        let mut events = Events::new(1 << 20);
        let mut found = Vec::new();
        let mut take = |event: Event<'_>| {
            found.push((event.is_error, String::from_utf8_lossy(event.data).into_owned()));
            ControlFlow::Continue(())
        };
        for piece in pieces {
            assert_eq!(events.feed(piece, &mut take), Ok(ControlFlow::Continue(())));
        }
        events.rest(&mut take);
        found
    }

    fn data(texts: &[&str]) -> Found {
        texts.iter().map(|text| (false, (*text).to_owned())).collect()
    }

    #[test]
    fn the_grammar_is_whatwgs() {
        for (body, expected) in [
            // Its own examples.
            ("data: YHOO\ndata: +2\ndata: 10\n\n", data(&["YHOO\n+2\n10"])),
            (
                ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
                data(&["first event", "second event", " third event"]),
            ),
            ("data\n\ndata\ndata\n\n", data(&["", "\n"])),
            ("data:test\n\ndata: test\n\n", data(&["test", "test"])),
            // Ends of lines, each by itself and mixed.
            ("data: a\r\n\r\ndata: b\r\rdata: c\n\n", data(&["a", "b", "c"])),
            ("data: a\r\ndata: b\n\r\ndata: c\r\n\r", data(&["a\nb", "c"])),
            // Nothing without data; the name of an event is its own alone.
            ("event: error\n\ndata: a\n\n", data(&["a"])),
            ("event: message\ndata: a\n\n", data(&["a"])),
            ("\u{feff}data: a\n\n\u{feff}data: b\n\n", data(&["a"])),
            ("DATA: a\ndatas: a\n data: a\nretry: 5\n\n", data(&[])),
            ("", data(&[])),
            ("\n\n\r\n: a\n", data(&[])),
            // What the end leaves open.
            ("data: a\n\ndata: b", data(&["a", "b"])),
            ("data: a\n\ndata: b\n", data(&["a", "b"])),
            ("event: error\ndata: a\n\ndata: b\n\n", vec![(true, "a".to_owned()), (false, "b".to_owned())]),
            ("error: {\"code\":500}\n\n", vec![(true, "{\"code\":500}".to_owned())]),
        ] {
            assert_eq!(read([body.as_bytes()]), expected, "{body:?}");
            let bytes: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
            assert_eq!(read(bytes), expected, "{body:?}, byte by byte");
            let bytes = body.as_bytes().chunks(1).flat_map(|byte| [byte, b""]);
            assert_eq!(read(bytes), expected, "{body:?}, with nothing between its bytes");
        }
    }

    #[test]
    fn who_has_enough_gets_no_more() {
        let mut events = Events::new(100);
        let mut found = 0;
        let mut take = |_: Event<'_>| {
            found += 1;
            ControlFlow::Break(())
        };
        assert_eq!(events.feed(b"data: a\n\ndata: b\n\n", &mut take), Ok(ControlFlow::Break(())));
        assert_eq!(found, 1);
    }

    #[test]
    fn an_event_has_a_bound_however_it_comes() {
        let feed = |pieces: &[&str]| {
            let mut events = Events::new(10);
            pieces.iter().try_for_each(|piece| {
                events.feed(piece.as_bytes(), &mut |_| ControlFlow::Continue(())).map(drop)
            })
        };
        assert_eq!(feed(&["data:", "12345", "\n\n", ": 45678", "\n"]), Ok(()));
        assert_eq!(feed(&["data: 1234567890\n"]), Err(TooLong));
        assert_eq!(feed(&[": 345678901\n"]), Err(TooLong), "whether it comes at once");
        assert_eq!(feed(&[": 345678901"]), Err(TooLong), "a comment without end");
        assert_eq!(feed(&[": 3456", "78901"]), Err(TooLong));
        assert_eq!(feed(&["data:1\ndata:2\ndata:3\n\ndata:4\n"]), Ok(()));
        assert_eq!(feed(&["data:1\ndata:2\ndata:3\ndata:4\n"]), Err(TooLong), "in many lines");
    }

    proptest! {
        #[test]
        fn pieces_change_nothing(
            body in "((data|event|error|:|id)?:? ?[a-zé\u{1f600}]{0,3}(\r\n|\n|\r){1,2}){0,12}",
            cuts in proptest::collection::vec(0_usize..100, 0..6),
        ) {
            let mut rest = body.as_bytes();
            let mut pieces = Vec::new();
            for cut in cuts {
                let (piece, behind) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = behind;
            }
            pieces.push(rest);
            prop_assert_eq!(read(pieces), read([body.as_bytes()]));
        }
    }
}
