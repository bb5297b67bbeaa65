//! What it means that an exchange broke: from reqwest's error, through the whole chain of its causes.

use std::error::Error;
use std::io;
use std::time::Duration;

use crate::diag::printable;
use crate::provider::TransportError;
use crate::provider::address::NotPublic;
use crate::provider::body::Unreadable;

/// What it means that not even a reply's head arrived. Where nothing proves that the request was not sent, it was.
pub(super) fn before_reply(error: &reqwest::Error, connect: Duration) -> TransportError {
    if let Some(refused) = cause::<NotPublic>(error) {
        TransportError::NotPublic(refused.0.clone())
    } else if let Some(unreadable) = cause::<Unreadable>(error) {
        TransportError::File(printable(&unreadable.to_string()))
    } else if let Some(untrusted) = cause::<rustls::Error>(error).filter(|error| is_about_trust(error)) {
        TransportError::Certificate(printable(&untrusted.to_string()))
    } else if error.is_connect() && error.is_timeout() {
        TransportError::Connect(format!("no connection within {}", humantime::format_duration(connect)))
    } else if error.is_connect() || error.is_builder() {
        TransportError::Connect(root_cause(error))
    } else if cause::<hyper::Error>(error).is_some_and(hyper::Error::is_canceled) {
        // It gives the request back as it was: nothing of it was written.
        TransportError::Connect("the connection closed before the request was sent".to_owned())
    } else {
        TransportError::Lost(root_cause(error))
    }
}

/// A handshake that failed for a certificate, and not because something that speaks no TLS was there.
fn is_about_trust(error: &rustls::Error) -> bool {
    use rustls::{AlertDescription as Alert, Error};
    matches!(
        error,
        // Its certificate, or the server's word about one that it wants of us.
        Error::InvalidCertificate(_)
            | Error::NoCertificatesPresented
            | Error::AlertReceived(
                Alert::BadCertificate
                    | Alert::UnsupportedCertificate
                    | Alert::CertificateRevoked
                    | Alert::CertificateExpired
                    | Alert::CertificateUnknown
                    | Alert::CertificateRequired
                    | Alert::UnknownCA
            )
    )
}

/// The first cause of this type. The source of an [`io::Error`] is its content's: what is in it, perhaps in another, is
/// found only by asking.
fn cause<T: Error + 'static>(error: &reqwest::Error) -> Option<&T> {
    causes(error).find_map(|cause| {
        let mut cause = cause;
        loop {
            if let Some(found) = cause.downcast_ref() {
                return Some(found);
            }
            cause = cause.downcast_ref::<io::Error>()?.get_ref()?;
        }
    })
}

/// The innermost cause alone: the outer ones only say that sending failed, and with which url.
pub(super) fn root_cause(error: &reqwest::Error) -> String {
    causes(error)
        .last()
        .map_or_else(|| "the request can't be sent".to_owned(), |root| printable(&root.to_string()))
}

/// The causes of `error`, without itself.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause| (*cause).source())
}
