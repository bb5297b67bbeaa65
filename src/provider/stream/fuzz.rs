//! What must hold of every stream, whatever its bytes: for `crate::fuzzing`.

use bytes::Bytes;
use reqwest::header::HeaderMap;

use super::{Came, Receiving};
use crate::domain::{Endpoint, Outcome, Timestamp};
use crate::provider::{HttpReply, Receiver, TransportError};

/// So small that the bounds are met.
const REPLY_BYTES_MAX: u64 = 2048;

/// What comes of `body` in pieces of `piece_bytes`.
fn came(endpoint: Endpoint, body: &[u8], piece_bytes: usize, exchanged: Result<(), ()>) -> Came {
    let mut receiving = Receiving::new(endpoint, 1, REPLY_BYTES_MAX);
    assert!(receiving.begins(200, &HeaderMap::new()));
    for piece in body.chunks(piece_bytes) {
        if receiving.take(piece).is_break() {
            break;
        }
    }
    let reply = HttpReply { status: 200, headers: HeaderMap::new(), body: Bytes::new() };
    receiving.finish(exchanged.map(|()| reply).map_err(|()| TransportError::Cut("reset".to_owned())))
}

/// A stream means the same however it is cut into pieces; what is made of it is one JSON object within the bound; and
/// one that breaks is an answer only where it would be one had it ended well.
pub(in crate::provider) fn stream(body: &[u8]) {
    for endpoint in [Endpoint::ChatCompletions, Endpoint::Completions] {
        let now = Timestamp::from_millis(0);
        let whole = came(endpoint, body, usize::MAX, Ok(()));
        let broken = came(endpoint, body, usize::MAX, Err(())).classify(endpoint, now).outcome;
        let outcome = whole.classify(endpoint, now).outcome;
        if let Outcome::Answered(response) = &outcome {
            let text = response.body.get();
            assert!(
                u64::try_from(text.len()).is_ok_and(|bytes| bytes <= REPLY_BYTES_MAX)
                    && text.starts_with('{'),
                "{text}"
            );
        } else {
            assert!(!matches!(broken, Outcome::Answered(_)), "half an answer: {broken:?}");
        }
        for piece_bytes in [1, 7] {
            let pieces = came(endpoint, body, piece_bytes, Ok(())).classify(endpoint, now).outcome;
            assert_eq!(format!("{pieces:?}"), format!("{outcome:?}"), "in pieces of {piece_bytes}");
        }
    }
}
