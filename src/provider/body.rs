//! What a request carries: bytes in memory, or pieces of files between bytes, read while they are sent.
//!
//! # Invariants
//!
//! - Of a file in a body one piece of [`PIECE_BYTES`] is in memory at a time (P5).
//! - A body is exactly as long as it said before it was sent. A file that has become shorter breaks the exchange
//!   off in its middle, so that no server takes it for whole; what a file grew by is not sent.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use thiserror::Error;
use tokio::sync::Notify;

use crate::provider::{HttpReply, HttpRequest, Receiver, Transfer, Transport, TransportError};

/// Large enough that reading costs little beside sending, small enough that progress moves on a slow line.
const PIECE_BYTES: u64 = 128 * 1024;

/// What a request carries. Cheap to clone.
#[derive(Clone, Debug)]
pub enum HttpBody {
    /// Empty for a request without a body.
    Bytes(Bytes),
    /// One after the other.
    Parts(Arc<[Part]>),
}

/// A part of a body.
#[derive(Clone, Debug)]
pub enum Part {
    Bytes(Bytes),
    /// `length` bytes of a file from `offset` on, whatever its cursor.
    File {
        file: Arc<File>,
        offset: u64,
        length: u64,
    },
}

impl HttpBody {
    pub const EMPTY: Self = Self::Bytes(Bytes::new());

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => length_of(bytes),
            Self::Parts(parts) => parts.iter().map(Part::length).sum(),
        }
    }

    /// The whole of it, for transports without sockets. Blocks while files are read.
    ///
    /// # Errors
    ///
    /// A file can't be read, or is shorter than it was.
    pub fn to_bytes(&self) -> io::Result<Bytes> {
        let parts = match self {
            Self::Bytes(bytes) => return Ok(bytes.clone()),
            Self::Parts(parts) => parts,
        };
        let mut whole = Vec::new();
        for part in parts.iter() {
            match part {
                Part::Bytes(bytes) => whole.extend_from_slice(bytes),
                Part::File { file, offset, length } => {
                    whole.extend_from_slice(&read(file, *offset, *length)?);
                }
            }
        }
        Ok(whole.into())
    }
}

impl HttpBody {
    /// The bytes, read as they are asked for; `motion` is told of those that come out of files.
    pub(super) fn into_stream(
        self,
        motion: Option<Arc<Motion>>,
    ) -> impl Stream<Item = Result<Bytes, Unreadable>> + use<> {
        let parts = match self {
            Self::Bytes(bytes) => [Part::Bytes(bytes)].into(),
            Self::Parts(parts) => parts,
        };
        stream::try_unfold(Position { parts, motion, part: 0, sent: 0 }, Position::step)
    }

    /// How many of its bytes come out of files.
    fn file_bytes(&self) -> u64 {
        match self {
            Self::Bytes(_) => 0,
            Self::Parts(parts) => {
                parts.iter().filter(|part| matches!(part, Part::File { .. })).map(Part::length).sum()
            }
        }
    }
}

impl From<Bytes> for HttpBody {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl Part {
    fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => length_of(bytes),
            Self::File { length, .. } => *length,
        }
    }
}

/// A file could not be read while it was sent, so the exchange was broken off.
#[derive(Debug, Error)]
#[error("the file can't be read: {0}")]
pub(super) struct Unreadable(#[source] io::Error);

/// How far a transfer is: bytes of files, up or down.
#[derive(Debug, Default)]
pub(super) struct Motion {
    bytes: AtomicU64,
    moved: Notify,
}

impl Motion {
    pub(super) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.moved.notify_one();
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits until something has moved since the last time. For one waiter.
    pub(super) async fn moved(&self) {
        self.moved.notified().await;
    }
}

/// What [`Transport::transfer`] does where it has no sockets: one exchange, in memory.
pub(super) async fn transfer_whole(
    transport: &(impl Transport + ?Sized),
    mut request: HttpRequest,
    transfer: Transfer<'_>,
) -> Result<HttpReply, TransportError> {
    let uploaded = request.body.file_bytes();
    if let Some(sink) = &transfer.sink {
        request.max_reply = request.max_reply.max(sink.max);
    }
    let mut reply = transport.exchange(request).await?;
    let Some(sink) = transfer.sink.filter(|_| (200..300).contains(&reply.status)) else {
        (transfer.progress)(uploaded);
        return Ok(reply);
    };
    let bytes = length_of(&reply.body);
    if bytes > sink.max {
        return Err(TransportError::TooLarge(sink.max));
    }
    sink.write.write_all(&std::mem::take(&mut reply.body)).map_err(|error| unwritable(&error))?;
    (transfer.progress)(bytes);
    Ok(reply)
}

/// What [`Transport::receive`] does where it has no sockets: one exchange, in memory.
pub(super) async fn receive_whole(
    transport: &(impl Transport + ?Sized),
    request: HttpRequest,
    receiver: &mut dyn Receiver,
) -> Result<HttpReply, TransportError> {
    let mut reply = transport.exchange(request).await?;
    if receiver.begins(reply.status, &reply.headers) {
        // There is no rest of it.
        let (ControlFlow::Continue(()) | ControlFlow::Break(())) =
            receiver.take(&std::mem::take(&mut reply.body));
    }
    Ok(reply)
}

/// What it means that a sink takes nothing more.
pub(super) fn unwritable(error: &io::Error) -> TransportError {
    TransportError::File(format!("the file can't be written: {error}"))
}

/// How much of a body is sent.
struct Position {
    parts: Arc<[Part]>,
    motion: Option<Arc<Motion>>,
    part: usize,
    /// Of this part.
    sent: u64,
}

impl Position {
    async fn step(mut self) -> Result<Option<(Bytes, Self)>, Unreadable> {
        loop {
            let Some(part) = self.parts.get(self.part) else { return Ok(None) };
            let left = part.length() - self.sent;
            if left == 0 {
                self.part += 1;
                self.sent = 0;
                continue;
            }
            let piece = match part {
                Part::Bytes(bytes) => bytes.clone(),
                Part::File { file, offset, .. } => {
                    let piece = read_aside(file, offset + self.sent, left.min(PIECE_BYTES)).await;
                    let piece = piece.map_err(Unreadable)?;
                    if let Some(motion) = &self.motion {
                        motion.add(length_of(&piece));
                    }
                    piece
                }
            };
            self.sent += length_of(&piece);
            return Ok(Some((piece, self)));
        }
    }
}

async fn read_aside(file: &Arc<File>, offset: u64, length: u64) -> io::Result<Bytes> {
    let file = Arc::clone(file);
    tokio::task::spawn_blocking(move || read(&file, offset, length)).await.map_err(io::Error::other)?
}

fn read(file: &File, offset: u64, length: u64) -> io::Result<Bytes> {
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, offset).map_err(|error| {
        let is_shorter = error.kind() == io::ErrorKind::UnexpectedEof;
        if is_shorter { io::Error::new(error.kind(), "it has become shorter") } else { error }
    })?;
    Ok(bytes.into())
}

fn length_of(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use futures_util::TryStreamExt;
    use futures_util::future::BoxFuture;
    use reqwest::header::HeaderMap;

    use super::*;
    use crate::provider::{Reach, Sink, Waits};

    fn file(content: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Arc::new(file)
    }

    fn parts(file: Arc<File>, offset: u64, length: u64) -> Arc<[Part]> {
        let bytes = |text: &'static str| Part::Bytes(Bytes::from_static(text.as_bytes()));
        [bytes("<"), bytes(""), Part::File { file, offset, length }, bytes(">")].into()
    }

    /// Answers 200 with what it was sent, and 404 for an empty body.
    #[derive(Debug)]
    struct Echo;

    impl Transport for Echo {
        fn exchange(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpReply, TransportError>> {
            let body = request.body.to_bytes().unwrap();
            let status = if body.is_empty() { 404 } else { 200 };
            Box::pin(async move { Ok(HttpReply { status, headers: HeaderMap::new(), body }) })
        }
    }

    #[tokio::test]
    async fn without_sockets_a_transfer_is_one_exchange() {
        let request = HttpRequest {
            method: reqwest::Method::POST,
            url: "http://h/".parse().unwrap(),
            headers: HeaderMap::new(),
            body: HttpBody::Parts(parts(file(b"abc"), 0, 3)),
            timeout: Duration::from_secs(1),
            waits: Waits::default(),
            max_reply: 1,
            reach: Reach::Anywhere,
        };
        let last = AtomicU64::new(0);
        let progress = |bytes| last.store(bytes, Ordering::Relaxed);
        let reply = Echo.transfer(request.clone(), Transfer { sink: None, progress: &progress });
        assert_eq!((&reply.await.unwrap().body[..], last.load(Ordering::Relaxed)), (&b"<abc>"[..], 3));
        for (max, expected) in [(5, &b"<abc>"[..]), (4, b"")] {
            let mut sunk = Vec::new();
            let sink = Some(Sink { write: &mut sunk, max });
            let reply = Echo.transfer(request.clone(), Transfer { sink, progress: &progress }).await;
            assert_eq!(reply.is_ok(), max == 5, "{reply:?}");
            assert_eq!(sunk, expected);
        }
        let empty = HttpRequest { body: HttpBody::EMPTY, ..request };
        let mut sunk = Vec::new();
        let sink = Some(Sink { write: &mut sunk, max: 5 });
        let reply = Echo.transfer(empty, Transfer { sink, progress: &progress }).await;
        assert_eq!(reply.unwrap().status, 404);
    }

    #[tokio::test]
    async fn parts_come_in_order_and_files_in_pieces() {
        let content = vec![b'x'; 300_000];
        let parts = parts(file(&content), 100, 299_900);
        let body = HttpBody::Parts(parts);
        let motion = Arc::new(Motion::default());
        let pieces: Vec<Bytes> =
            body.clone().into_stream(Some(Arc::clone(&motion))).try_collect().await.unwrap();
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [1, 131_072, 131_072, 37_756, 1]);
        assert_eq!(motion.bytes(), 299_900);
        assert_eq!(body.length(), 299_902);
        assert_eq!(body.to_bytes().unwrap(), pieces.concat());
    }

    #[tokio::test]
    async fn a_file_that_became_shorter_is_an_error_and_never_a_short_body() {
        let parts = parts(file(b"abc"), 0, 4);
        let error =
            HttpBody::Parts(Arc::clone(&parts)).into_stream(None).try_collect::<Vec<_>>().await.unwrap_err();
        assert_eq!(error.to_string(), "the file can't be read: it has become shorter");
        assert!(HttpBody::Parts(parts).to_bytes().is_err());
    }

    #[tokio::test]
    async fn what_a_file_grew_by_is_not_sent() {
        let body = HttpBody::Parts(parts(file(b"abcdef"), 1, 3));
        assert_eq!(body.to_bytes().unwrap(), "<bcd>");
    }
}
