//! The connections of one door, each a task of its own: one that stalls holds nothing else up.
//!
//! # Invariants
//!
//! - A request's head is small and comes soon, or its connection is closed ([`Bounds`]).
//! - There are never more than so many connections. Where one more comes, the oldest makes room: who only holds
//!   connections open keeps nobody else out.

use std::collections::VecDeque;
use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long a client may take to let go once the daemon stops. Answers are small: a client that still holds
/// its connection then has stopped reading.
const DRAIN: Duration = Duration::from_secs(1);

/// How long a request's head may take to arrive, and how long a connection may idle between two.
const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// Bytes of a request's head: the names of jobs stand in it, and a token.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// What clients of a door may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) connections: usize,
    /// For a connection as a whole, which then serves one request. None = as long as it takes.
    pub(super) whole: Option<Duration>,
}

/// Answers whoever connects, by the router that `welcome` has for them, until `stop`; then whoever is being
/// answered may still be for a moment.
pub(super) async fn serve<L: Listener>(
    mut listener: L,
    bounds: Bounds,
    welcome: impl Fn(&L::Io) -> Router,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    let mut by_age = VecDeque::new();
    loop {
        // Stopping first; ended connections make room before new ones come.
        tokio::select! { biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (io, _) = listener.accept() => {
                make_room(&mut by_age, bounds.connections);
                let router = welcome(&io);
                let connection = answer(io, router, bounds.whole, stop.clone());
                by_age.push_back(connections.spawn(connection));
            }
        }
    }
    drop(listener);
    // What is left then is abandoned with the set.
    drop(timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await);
}

/// Ends the oldest connection if there are as many as there may be.
fn make_room(by_age: &mut VecDeque<AbortHandle>, most: usize) {
    by_age.retain(|connection| !connection.is_finished());
    if by_age.len() >= most
        && let Some(oldest) = by_age.pop_front()
    {
        tracing::debug!(connections = most, "the oldest connection makes room for another");
        oldest.abort();
    }
}

/// Answers one client, until it has gone, or the time is over. How it went is nobody's concern but the client's.
async fn answer<I>(io: I, router: Router, whole: Option<Duration>, stop: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(whole.is_none())
        .serve_connection(TokioIo::new(io), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let too_long = async {
        match whole {
            Some(whole) => sleep(whole).await,
            None => pending().await,
        }
    };
    // An answer that is ready counts, however late.
    tokio::select! { biased;
        _ = connection.as_mut() => {}
        () = too_long => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            drop(connection.await);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;

    const WHOLE: Duration = Duration::from_secs(15);

    /// Connections made of memory, so that time can be paused.
    struct Wires(mpsc::Receiver<DuplexStream>);

    impl Listener for Wires {
        type Io = DuplexStream;
        type Addr = ();

        async fn accept(&mut self) -> (DuplexStream, ()) {
            match self.0.recv().await {
                Some(wire) => (wire, ()),
                None => pending().await,
            }
        }

        fn local_addr(&self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Where clients come from.
    struct Street(mpsc::Sender<DuplexStream>);

    impl Street {
        async fn connect(&self) -> DuplexStream {
            let (ours, theirs) = duplex(1024);
            self.0.send(theirs).await.unwrap();
            ours
        }
    }

    /// Serves while `talk` runs, and what it gives back is held until the end.
    async fn served<T>(bounds: Bounds, talk: impl AsyncFnOnce(Street) -> T) {
        let router = Router::new()
            .route("/short", get(async || "short"))
            .route("/long", get(async || "long".repeat(1 << 20)));
        let (street, wires) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let talked = async {
            let held = talk(Street(street)).await;
            stop.cancel();
            held
        };
        let _held = tokio::join!(serve(Wires(wires), bounds, |_| router.clone(), stop.clone()), talked);
    }

    async fn rest(mut stream: DuplexStream) -> String {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        String::from_utf8(rest).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_in_time_ends_its_connection() {
        served(Bounds { connections: 9, whole: None }, async |street| {
            let mut stream = street.connect().await;
            let began = Instant::now();
            stream.write_all(b"GET /short HTTP/1.1\r\nHost:").await.unwrap();
            assert_eq!(rest(stream).await, "");
            assert!((HEAD_WITHIN..HEAD_WITHIN * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_his_answer_is_left_when_the_time_is_over() {
        served(Bounds { connections: 9, whole: Some(WHOLE) }, async |street| {
            let mut stream = street.connect().await;
            let began = Instant::now();
            stream.write_all(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            sleep(WHOLE * 2).await;
            let read = rest(stream).await;
            assert!(read.starts_with("HTTP/1.1 200") && read.len() <= 1024, "{}", read.len());
            assert!(began.elapsed() < WHOLE * 3);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_connection_makes_room_and_those_that_stall_hold_nobody_up() {
        served(Bounds { connections: 3, whole: Some(WHOLE) }, async |street| {
            let began = Instant::now();
            let mut stalled = Vec::new();
            for _ in 0..4 {
                let mut stream = street.connect().await;
                stream.write_all(b"GET /sho").await.unwrap();
                stalled.push(stream);
            }
            let mut stream = street.connect().await;
            stream.write_all(b"GET /short HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            assert!(rest(stream).await.ends_with("\r\n\r\nshort"));
            for oldest in stalled.drain(..2) {
                assert_eq!(rest(oldest).await, "");
            }
            assert_eq!(began.elapsed(), Duration::ZERO, "nobody had to wait");
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_lets_an_answer_end_and_waits_no_longer_for_the_rest() {
        let began = Instant::now();
        served(Bounds { connections: 9, whole: None }, async |street| {
            let mut stream = street.connect().await;
            stream.write_all(b"GET /long HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
            let mut first = [0; 8];
            stream.read_exact(&mut first).await.unwrap();
            stream
        })
        .await;
        assert!((DRAIN..DRAIN * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}
