//! Reads `multipart/form-data`: small text fields and one file, in any order.
//!
//! The parser is not of batchd's making, so that what batchd uploads is read by somebody else's idea of the format.

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, stream};
use multer::Multipart;

use crate::simulate::refusal::Refusal;

/// What the parser is fed at a time: it keeps no more than that beside what it has read.
const CHUNK_BYTES: usize = 64 * 1024;
/// No text field of the API is longer.
const TEXT_BYTES_MAX: usize = 4096;

/// A form, read whole.
#[derive(Debug, Default)]
pub(super) struct Form {
    texts: BTreeMap<String, String>,
    files: BTreeMap<String, Part>,
}

/// A part that carries a file.
#[derive(Debug)]
pub(super) struct Part {
    /// None for a part without one, as `curl -F 'file=…'` sends text.
    pub(super) filename: Option<String>,
    pub(super) content: Bytes,
}

impl Form {
    /// Reads a body. The parts called by the names in `files` are files, all others short texts.
    pub(super) fn read(headers: &HeaderMap, body: &[u8], files: &[&str]) -> Result<Self, Refusal> {
        let content_type =
            headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let boundary = multer::parse_boundary(content_type)
            .map_err(|error| Refusal::bad_form(&format!("{error} (found Content-Type `{content_type}`)")))?;
        let chunks = body.chunks(CHUNK_BYTES).map(|chunk| Ok::<_, Infallible>(Bytes::copy_from_slice(chunk)));
        let form = Self::collect(Multipart::new(stream::iter(chunks), boundary), files);
        // Every byte is here already, so nothing is ever waited for.
        form.now_or_never()
            .unwrap_or(Err(multer::Error::IncompleteStream))
            .map_err(|error| Refusal::bad_form(&error.to_string()))
    }

    async fn collect(mut multipart: Multipart<'_>, files: &[&str]) -> Result<Self, multer::Error> {
        let mut form = Self::default();
        while let Some(mut field) = multipart.next_field().await? {
            let name = field.name().unwrap_or_default().to_owned();
            let filename = field.file_name().map(str::to_owned);
            let is_file = files.contains(&name.as_str());
            let mut content = BytesMut::new();
            while let Some(chunk) = field.chunk().await? {
                if !is_file && content.len() + chunk.len() > TEXT_BYTES_MAX {
                    let limit = u64::try_from(TEXT_BYTES_MAX).unwrap_or(u64::MAX);
                    return Err(multer::Error::FieldSizeExceeded { limit, field_name: Some(name) });
                }
                content.extend_from_slice(&chunk);
            }
            if is_file {
                form.files.insert(name, Part { filename, content: content.freeze() });
            } else {
                form.texts.insert(name, String::from_utf8_lossy(&content).into_owned());
            }
        }
        Ok(form)
    }

    pub(super) fn take_text(&mut self, name: &str) -> Option<String> {
        self.texts.remove(name)
    }

    pub(super) fn take_file(&mut self, name: &str) -> Option<Part> {
        self.files.remove(name)
    }

    /// Refuses what nobody has asked for.
    pub(super) fn end(self) -> Result<(), Refusal> {
        let left = self.texts.into_keys().chain(self.files.into_keys()).next();
        left.map_or(Ok(()), |name| Err(Refusal::unknown_parameter(name)))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(content_type: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))])
    }

    #[test]
    fn parts_are_read_in_any_order_and_byte_for_byte() {
        let content: Vec<u8> = (0..200_000_u32).map(|byte| u8::try_from(byte % 256).unwrap()).collect();
        let mut body =
            b"--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a \\\"b\\\".jsonl\"\r\n\r\n"
                .to_vec();
        body.extend(&content);
        body.extend(b"\r\n--b\r\nContent-Disposition: form-data; name=purpose\r\n\r\nfine-tune\r\n--b--\r\n");
        let mut form = Form::read(&headers("multipart/form-data; boundary=\"b\""), &body, &["file"]).unwrap();
        let part = form.take_file("file").unwrap();
        assert_eq!((part.filename.as_deref(), &part.content[..]), (Some("a \"b\".jsonl"), &content[..]));
        assert_eq!(form.take_text("purpose").as_deref(), Some("fine-tune"));
        form.end().unwrap();
    }

    #[test]
    fn what_is_no_form_is_refused() {
        let multipart = headers("multipart/form-data; boundary=b");
        let refused =
            |headers: &HeaderMap, body: &[u8]| Form::read(headers, body, &["file"]).unwrap_err().status;
        assert_eq!(refused(&headers("application/json"), b"{}"), 400);
        assert_eq!(refused(&multipart, b""), 400);
        let cut = b"--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nhalf of a fi";
        assert_eq!(refused(&multipart, cut), 400);
        let long = [
            b"--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\n".as_slice(),
            &[b'x'; 5000],
            b"\r\n--b--\r\n",
        ];
        assert_eq!(refused(&multipart, &long.concat()), 400);
        let stray = b"--b\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n1\r\n--b--\r\n";
        let refusal = Form::read(&multipart, stray, &["file"]).unwrap().end().unwrap_err();
        assert_eq!(refusal.name, "unknown_parameter");
    }
}
