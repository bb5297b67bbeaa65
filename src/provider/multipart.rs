//! A form with a file in it (`multipart/form-data`), streamed from disk.

use std::fs::File;
use std::sync::Arc;

use reqwest::header::HeaderValue;

use crate::provider::{HttpBody, Part};

/// A form. Its fields stand before its file, as the official SDK sends them.
#[derive(Debug)]
pub(super) struct Form {
    boundary: String,
    head: String,
}

/// A range of a file.
#[derive(Clone, Debug)]
pub(super) struct Range {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Form {
    /// `salt` makes the boundary one that no file holds by chance.
    pub(super) fn new(salt: &str) -> Self {
        let hash = blake3::hash(salt.as_bytes()).to_hex();
        Self { boundary: format!("batchd{hash}"), head: String::new() }
    }

    pub(super) fn content_type(&self) -> HeaderValue {
        HeaderValue::try_from(format!("multipart/form-data; boundary={}", self.boundary))
            .expect("a boundary is letters and digits")
    }

    pub(super) fn field(mut self, name: &str, value: &str) -> Self {
        self.begin(name, "");
        self.head.extend(["\r\n", value, "\r\n"]);
        self
    }

    /// The whole form, with its file at the end.
    pub(super) fn with_file(mut self, name: &str, file_name: &str, range: Range) -> HttpBody {
        self.begin(name, &format!("; filename=\"{}\"", quoted(file_name)));
        self.head.push_str("Content-Type: application/octet-stream\r\n\r\n");
        let Range { file, offset, length } = range;
        let tail = format!("\r\n--{}--\r\n", self.boundary);
        let parts =
            [Part::Bytes(self.head.into()), Part::File { file, offset, length }, Part::Bytes(tail.into())];
        HttpBody::Parts(parts.into())
    }

    fn begin(&mut self, name: &str, more: &str) {
        let lines =
            ["--", &self.boundary, "\r\nContent-Disposition: form-data; name=\"", name, "\"", more, "\r\n"];
        self.head.extend(lines);
    }
}

/// As browsers write it: only what would end the name is encoded.
fn quoted(name: &str) -> String {
    name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_form_is_written_as_the_sdk_writes_it() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let form = Form::new("salt").field("purpose", "fine-tune");
        let content_type = form.content_type().to_str().unwrap().to_owned();
        let boundary = content_type.strip_prefix("multipart/form-data; boundary=").unwrap().to_owned();
        let range = Range { file: Arc::new(file), offset: 2, length: 5 };
        let body = form.with_file("file", "a \"b\"\r\n é.jsonl", range).to_bytes().unwrap();
        let expected = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nfine-tune\r\n\
             --{boundary}\r\nContent-Disposition: form-data; name=\"file\"; \
             filename=\"a %22b%22%0D%0A é.jsonl\"\r\nContent-Type: application/octet-stream\r\n\r\n23456\r\n\
             --{boundary}--\r\n"
        );
        assert_eq!(String::from_utf8(body.to_vec()).unwrap(), expected);
        assert!(boundary.len() <= 70, "RFC 2046 allows no longer one: {}", boundary.len());
    }

    #[test]
    fn boundaries_differ() {
        assert_ne!(Form::new("a").boundary, Form::new("b").boundary);
    }
}
