//! Connections that can be broken, and a door that can be shut.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;

use crate::bell::Bell;

/// Connections that may wait to be accepted: a crowd of workers comes at once.
const BACKLOG: u32 = 4096;
/// Between two tries to listen again after the server was down.
const LISTEN_AGAIN: Duration = Duration::from_millis(50);

/// Listens on an address. Must be called within a tokio runtime.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Whether anybody listens. Its clones are the same door.
#[derive(Clone, Debug, Default)]
pub(super) struct Door {
    is_shut: Arc<AtomicBool>,
    bell: Bell,
}

impl Door {
    pub(super) fn shut(&self, is_shut: bool) {
        if self.is_shut.swap(is_shut, Ordering::AcqRel) != is_shut {
            self.bell.ring();
        }
    }

    fn is_shut(&self) -> bool {
        self.is_shut.load(Ordering::Acquire)
    }

    async fn wait_until(&self, is_shut: bool) {
        let mut bell = self.bell.listen();
        while self.is_shut() != is_shut {
            bell.changed().await;
        }
    }
}

/// Accepts connections as [`Line`]s while the server is up. While it is down nobody listens, so that the kernel
/// refuses them, and those that there are are reset.
#[derive(Debug)]
pub(super) struct Lines {
    /// None while the server is down.
    listener: Option<TcpListener>,
    address: SocketAddr,
    door: Door,
}

impl Lines {
    pub(super) fn new(listener: TcpListener, address: SocketAddr, door: Door) -> Self {
        Self { listener: Some(listener), address, door }
    }

    /// Listens, again if need be, as soon as the server is up.
    async fn open(&mut self) -> &mut TcpListener {
        loop {
            if self.door.is_shut() {
                self.listener = None;
                self.door.wait_until(false).await;
            }
            if self.listener.is_none() {
                match listen(self.address) {
                    Ok(listener) => self.listener = Some(listener),
                    Err(error) => {
                        tracing::error!(%error, address = %self.address, "can't listen again yet");
                        sleep(LISTEN_AGAIN).await;
                        continue;
                    }
                }
            }
            break;
        }
        self.listener.as_mut().expect("it was put there just now")
    }
}

impl Listener for Lines {
    type Io = Line;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Line, SocketAddr) {
        loop {
            let door = self.door.clone();
            let listener = self.open().await;
            tokio::select! {
                // In this order, so that a server that is down accepts nobody.
                biased;
                () = door.wait_until(true) => {}
                (stream, address) = Listener::accept(listener) => {
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "a connection keeps its delay");
                    }
                    let fall = async move { door.wait_until(true).await };
                    let fall = Box::pin(fall);
                    return (Line { stream, breaker: Breaker::default(), fall }, address);
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Breaks its connection when tripped.
#[derive(Clone, Debug, Default)]
pub(super) struct Breaker(Arc<AtomicBool>);

impl Breaker {
    pub(super) fn trip(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_tripped(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Connected<IncomingStream<'_, Lines>> for Breaker {
    fn connect_info(stream: IncomingStream<'_, Lines>) -> Self {
        stream.io().breaker.clone()
    }
}

/// A connection that can be broken.
pub(super) struct Line {
    stream: TcpStream,
    breaker: Breaker,
    /// Ends when the server goes down.
    fall: BoxFuture<'static, ()>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Line {
    fn check(&self) -> io::Result<()> {
        if self.breaker.is_tripped() { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.breaker.is_tripped()
            && let Err(error) = self.stream.set_zero_linger()
        {
            tracing::debug!(%error, "a connection is closed, not reset");
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.breaker.is_tripped() && self.fall.as_mut().poll(context).is_ready() {
            self.breaker.trip();
        }
        self.check()?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
