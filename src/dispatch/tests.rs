//! Dispatch under the paused clock, against the stand-in provider without sockets.
