//! Images out of answers: files below `images/`, named in the record instead of what they were made from.
//!
//! # Format
//!
//! `images/<custom_id>-<n>.<ending>`, `n` from 1 in the order of `data`. In a published record
//! `response.body.data[i]` has `"file": "images/…"` in place of its `b64_json` or `url`; every other
//! member keeps its bytes.
//!
//! # Invariants
//!
//! - A file that is there is whole (it got its name by rename) and is not made again: the folder is the state.
//! - No two `custom_id`s share a file name.

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::{fs, io};

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;
use tracing::warn;

use super::Error;
use super::folder::ResultsFolder;
use super::summary::ImageCounts;
use crate::disk;
use crate::fault;
use crate::pulse;
use crate::reading::json::{Member, members};
use crate::store::folder::{failed, sync_parent, write_atomic};

/// Endings by the first bytes; `bin` where they say nothing.
const ENDINGS: [&str; 6] = ["png", "jpg", "webp", "gif", "svg", "bin"];
/// Longest encoded `custom_id`: with number, ending and a temporary name's `.` and `.tmp` it stays below
/// the 255 bytes of a file name.
const STEM_BYTES_MAX: usize = 200;
/// What is kept of a longer one, before the hash of the whole.
const STEM_BYTES_KEPT: usize = 160;
/// Servers pad base64 or don't.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An answer that holds or names images, borrowed from its record's line.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    pub(super) custom_id: Cow<'a, str>,
    pub(super) pictures: Vec<Picture<'a>>,
}

/// One member of `response.body.data`.
#[derive(Debug)]
pub(super) struct Picture<'a> {
    /// From 1, in the order of `data`.
    pub(super) number: usize,
    pub(super) source: Source<'a>,
    /// The object's place in the line.
    place: Range<usize>,
    members: Vec<Member<'a>>,
    /// The key of the member that `source` was read from.
    key: &'static str,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source<'a> {
    /// Base64.
    Inline(Cow<'a, str>),
    Url(Cow<'a, str>),
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    custom_id: Cow<'a, str>,
    #[serde(borrow)]
    response: Reply<'a>,
}

#[derive(Deserialize)]
struct Reply<'a> {
    status_code: u16,
    #[serde(borrow)]
    body: Body<'a>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Cheap, and true for every answer with images: most lines of mixed jobs need no closer look.
pub(super) fn may_hold_images(line: &[u8]) -> bool {
    let holds = |key: &str| memmem::find(line, key.as_bytes()).is_some();
    holds("\"data\"") && (holds("\"b64_json\"") || holds("\"url\""))
}

impl<'a> Answer<'a> {
    /// The images of a successful record's line; none if there are none.
    pub(super) fn read(line: &'a str) -> Option<Self> {
        let Line { custom_id, response } = serde_json::from_str(line).ok()?;
        if !matches!(response.status_code, 200..300) {
            return None;
        }
        let pictures = response.body.data.into_iter().zip(1..);
        let pictures: Vec<_> =
            pictures.filter_map(|(element, number)| Picture::read(line, element.get(), number)).collect();
        (!pictures.is_empty()).then_some(Self { custom_id, pictures })
    }
}

impl<'a> Picture<'a> {
    fn read(line: &str, element: &'a str, number: usize) -> Option<Self> {
        let start = element.as_ptr().addr() - line.as_ptr().addr();
        let members = members(element).ok()?;
        let text = |key: &str| {
            let member = members.iter().find(|member| member.key == key)?;
            serde_json::from_str::<Text<'a>>(member.value).ok().map(|Text(text)| text)
        };
        let (key, source) = match (text("b64_json"), text("url")) {
            // Some servers write the member that they don't use as an empty string.
            (Some(base64), url) if !base64.is_empty() || url.is_none() => {
                ("b64_json", Source::Inline(base64))
            }
            (_, Some(url)) => ("url", inline_data(&url).unwrap_or(Source::Url(url))),
            (_, None) => return None,
        };
        Some(Self { number, source, place: start..start + element.len(), members, key })
    }

    /// The object with `file` in place of what the image was made from.
    fn naming(&self, file: &str) -> String {
        let file = serde_json::Value::from(format!("images/{file}")).to_string();
        let mut object = String::from("{");
        for member in &self.members {
            let (key, value) = match member.key.as_ref() {
                key if key == self.key => ("file", file.as_str()),
                // A member of that name would stand there twice.
                "file" => continue,
                key => (key, member.value),
            };
            if object.len() > 1 {
                object.push(',');
            }
            object.push_str(&serde_json::Value::from(key).to_string());
            object.push(':');
            object.push_str(value);
        }
        object.push('}');
        object
    }
}

/// The base64 of a `data:` url, which some local servers give.
fn inline_data<'a>(url: &str) -> Option<Source<'a>> {
    let (_, base64) = url.strip_prefix("data:")?.split_once(";base64,")?;
    Some(Source::Inline(Cow::Owned(base64.to_owned())))
}

/// The `images/` of one job.
#[derive(Clone, Debug)]
pub(super) struct Gallery(PathBuf);

impl Gallery {
    pub(super) fn new(folder: &ResultsFolder) -> Self {
        Self(folder.images())
    }

    /// The file of an image, if it is there.
    pub(super) fn find(&self, custom_id: &str, number: usize) -> Option<String> {
        let stem = stem(custom_id);
        let names = ENDINGS.iter().map(|ending| format!("{stem}-{number}.{ending}"));
        names.into_iter().find(|name| self.0.join(name).is_file())
    }

    /// Writes an image and says under which name.
    pub(super) fn save(&self, custom_id: &str, number: usize, bytes: &[u8]) -> Result<String, Error> {
        if !self.0.is_dir() {
            disk::make_shared_dir(&self.0).map_err(failed("create folder", &self.0)).map_err(Error::Files)?;
            sync_parent(&self.0).map_err(Error::Files)?;
        }
        let name = format!("{}-{number}.{}", stem(custom_id), ending(bytes));
        write_atomic(&self.0.join(&name), bytes).map_err(Error::Files)?;
        fault::point("output-image-written");
        Ok(name)
    }

    /// Makes sure that an image that stands in the record is a file. None if it is no base64.
    pub(super) fn unpack(
        &self,
        custom_id: &str,
        number: usize,
        base64: &str,
    ) -> Result<Option<String>, Error> {
        if let Some(name) = self.find(custom_id, number) {
            return Ok(Some(name));
        }
        let decoded = if base64.contains(|c: char| c.is_ascii_whitespace()) {
            BASE64.decode(base64.split_ascii_whitespace().collect::<String>())
        } else {
            BASE64.decode(base64)
        };
        match decoded {
            Ok(bytes) if !bytes.is_empty() => self.save(custom_id, number, &bytes).map(Some),
            Ok(_) => Ok(None),
            Err(error) => {
                warn!(custom_id, number, %error, "an image is no base64 and stays in its record");
                Ok(None)
            }
        }
    }

    /// The line as it is published: images that are files are named, and what could not be had stays.
    pub(super) fn publish(&self, line: Vec<u8>, counts: &mut ImageCounts) -> Result<Vec<u8>, Error> {
        let Some(text) = std::str::from_utf8(&line).ok() else { return Ok(line) };
        let Some(answer) = Answer::read(text) else { return Ok(line) };
        let mut published = String::new();
        let mut copied = 0;
        for picture in &answer.pictures {
            let file = match &picture.source {
                Source::Inline(base64) => self.unpack(&answer.custom_id, picture.number, base64)?,
                Source::Url(_) => self.find(&answer.custom_id, picture.number),
            };
            let Some(file) = file else {
                counts.failed_downloads += 1;
                continue;
            };
            counts.written += 1;
            published.push_str(text.get(copied..picture.place.start).unwrap_or_default());
            published.push_str(&picture.naming(&file));
            copied = picture.place.end;
        }
        published.push_str(text.get(copied..).unwrap_or_default());
        Ok(published.into_bytes())
    }

    /// Takes away what a crash left half written.
    pub(super) fn sweep(&self, member: &pulse::Member) -> Result<(), Error> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::Files(failed("read folder", &self.0)(error))),
        };
        for entry in entries {
            member.answer();
            let path = entry.map_err(failed("read folder", &self.0)).map_err(Error::Files)?.path();
            let name = path.file_name().map(std::ffi::OsStr::as_encoded_bytes).unwrap_or_default();
            if name.starts_with(b".") && name.ends_with(b".tmp") {
                disk::remove_file(&path).map_err(failed("remove", &path)).map_err(Error::Files)?;
            }
        }
        Ok(())
    }
}

/// A `custom_id`, or a name of a provider's, as the beginning of a file name. What a file name can't or shouldn't hold is
/// percent-encoded, the percent sign too, so that the encoding can be undone. An over-long one is cut
/// and ends in `%-` and a hash, which no encoding contains.
pub(super) fn stem(custom_id: &str) -> String {
    let mut stem = String::with_capacity(custom_id.len());
    let mut kept = 0;
    for (at, c) in custom_id.char_indices() {
        let odd = matches!(c, '/' | '\\' | '%' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if odd || c.is_control() || (at == 0 && c == '.') {
            let mut bytes = [0; 4];
            stem.extend(c.encode_utf8(&mut bytes).bytes().map(percent_encoding::percent_encode_byte));
        } else {
            stem.push(c);
        }
        if stem.len() <= STEM_BYTES_KEPT {
            kept = stem.len();
        }
    }
    if stem.len() > STEM_BYTES_MAX {
        let hash = blake3::hash(custom_id.as_bytes()).to_hex();
        stem.truncate(kept);
        stem.push_str("%-");
        // 128 bits: nobody finds two names with the same.
        stem.extend(hash.chars().take(32));
    }
    stem
}

/// What a file that begins with these bytes is called.
fn ending(bytes: &[u8]) -> &'static str {
    let is_webp = bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP");
    let head = bytes.get(..512).unwrap_or(bytes).trim_ascii_start();
    let is_svg =
        head.starts_with(b"<svg") || (head.starts_with(b"<?xml") && memmem::find(head, b"<svg").is_some());
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => "png",
        [0xff, 0xd8, 0xff, ..] => "jpg",
        [b'G', b'I', b'F', b'8', ..] => "gif",
        _ if is_webp => "webp",
        _ if is_svg => "svg",
        _ => "bin",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PNG: &[u8] = b"\x89PNG\r\n\x1a\nrest";

    fn gallery() -> (tempfile::TempDir, Gallery) {
        let root = tempfile::tempdir().unwrap();
        let gallery = Gallery(root.path().join("images"));
        (root, gallery)
    }

    fn line(custom_id: &str, data: &str) -> String {
        let custom_id = serde_json::Value::from(custom_id);
        format!(
            "{{\"id\":\"batch_req_1\",\"custom_id\":{custom_id},\"response\":{{\"status_code\":200,\
             \"request_id\":\"r\",\"body\":{{\"created\":1.50, \"data\":{data},\"usage\":{{}}}}}},\"error\":null}}"
        )
    }

    #[test]
    fn base64_becomes_a_file_and_every_other_byte_stays() {
        let (_root, gallery) = gallery();
        let base64 = BASE64.encode(PNG);
        let before = line(
            "a/b",
            &format!("[ {{\"revised_prompt\": \"\\u00e9\", \"b64_json\": \"{base64}\", \"x\":1e2}} ]"),
        );
        let mut counts = ImageCounts::default();
        let after = gallery.publish(before.into_bytes(), &mut counts).unwrap();
        let expected =
            line("a/b", "[ {\"revised_prompt\":\"\\u00e9\",\"file\":\"images/a%2Fb-1.png\",\"x\":1e2} ]");
        assert_eq!(String::from_utf8(after).unwrap(), expected);
        assert_eq!(fs::read(gallery.0.join("a%2Fb-1.png")).unwrap(), PNG);
        assert_eq!(counts, ImageCounts { written: 1, failed_downloads: 0 });
    }

    #[test]
    fn urls_are_named_if_downloaded_and_stay_if_not() {
        let (_root, gallery) = gallery();
        gallery.save("a", 2, b"\xff\xd8\xff\xe0").unwrap();
        let before = line("a", "[{\"url\":\"http://x/1\"},{\"b64_json\":null,\"url\":\"http://x/2\"},{}]");
        let mut counts = ImageCounts::default();
        let after = gallery.publish(before.into_bytes(), &mut counts).unwrap();
        let expected =
            line("a", "[{\"url\":\"http://x/1\"},{\"b64_json\":null,\"file\":\"images/a-2.jpg\"},{}]");
        assert_eq!(String::from_utf8(after).unwrap(), expected);
        assert_eq!(counts, ImageCounts { written: 1, failed_downloads: 1 });
    }

    #[test]
    fn a_url_beside_an_empty_b64_json_is_the_image() {
        let line = line("a", "[{\"b64_json\":\"\",\"url\":\"http://x/1\"}]");
        let answer = Answer::read(&line).unwrap();
        assert_eq!(answer.pictures[0].source, Source::Url("http://x/1".into()));
    }

    #[test]
    fn what_is_no_base64_stays_and_counts_as_failed() {
        let (_root, gallery) = gallery();
        let before = line("a", "[{\"b64_json\":\"***\"},{\"b64_json\":\"\"}]");
        let mut counts = ImageCounts::default();
        let after = gallery.publish(before.clone().into_bytes(), &mut counts).unwrap();
        assert_eq!(String::from_utf8(after).unwrap(), before);
        assert_eq!(counts.failed_downloads, 2);
        assert!(!gallery.0.exists());
    }

    #[test]
    fn data_urls_and_broken_lines_of_base64_are_read() {
        let (_root, gallery) = gallery();
        let base64 = BASE64.encode(PNG);
        let (left, right) = base64.trim_end_matches('=').split_at(4);
        let data =
            format!("[{{\"url\":\"data:image/png;base64,{base64}\"}},{{\"b64_json\":\"{left}\\n{right}\"}}]");
        let mut counts = ImageCounts::default();
        gallery.publish(line("a", &data).into_bytes(), &mut counts).unwrap();
        assert_eq!(counts.written, 2);
        assert_eq!(fs::read(gallery.0.join("a-2.png")).unwrap(), PNG);
    }

    #[test]
    fn a_file_that_is_there_is_not_written_again() {
        let (_root, gallery) = gallery();
        gallery.save("a", 1, b"first").unwrap();
        assert_eq!(gallery.unpack("a", 1, &BASE64.encode(PNG)).unwrap().as_deref(), Some("a-1.bin"));
        assert_eq!(fs::read_dir(&gallery.0).unwrap().count(), 1);
    }

    #[test]
    fn half_written_files_are_swept() {
        let (_root, gallery) = gallery();
        gallery.sweep(&pulse::Member::default()).unwrap();
        gallery.save("a", 1, PNG).unwrap();
        fs::write(gallery.0.join(".a-2.png.tmp"), "half").unwrap();
        gallery.sweep(&pulse::Member::default()).unwrap();
        assert_eq!(fs::read_dir(&gallery.0).unwrap().count(), 1);
    }

    #[test]
    fn answers_without_images_are_left_alone() {
        let embedding = line("a", "[{\"embedding\":[1,2]}]");
        assert!(Answer::read(&embedding).is_none());
        assert!(!may_hold_images(embedding.as_bytes()));
        assert!(Answer::read("{\"custom_id\":\"a\",\"response\":null,\"error\":{}}").is_none());
        assert!(Answer::read("{\"custom_id\":\"a\",\"response\":{\"body\":\"text\"}}").is_none());
    }

    #[test]
    fn endings_come_from_the_first_bytes() {
        for (bytes, expected) in [
            (PNG, "png"),
            (b"\xff\xd8\xff\xe0", "jpg"),
            (b"RIFF\0\0\0\0WEBPVP8 ", "webp"),
            (b"RIFF\0\0\0\0WAVE", "bin"),
            (b"GIF89a", "gif"),
            (b"\n<svg xmlns=''/>", "svg"),
            (b"<?xml version='1.0'?><svg/>", "svg"),
            (b"<?xml version='1.0'?><html/>", "bin"),
            (b"", "bin"),
        ] {
            assert_eq!(ending(bytes), expected);
            assert!(ENDINGS.contains(&expected));
        }
    }

    #[test]
    fn names_hold_what_file_names_can() {
        for (custom_id, expected) in [
            ("row-1", "row-1"),
            ("über 3", "über 3"),
            ("../../etc", "%2E.%2F..%2Fetc"),
            (".", "%2E"),
            ("a%2Fb", "a%252Fb"),
            ("a\nb\0", "a%0Ab%00"),
            ("a\u{202e}b", "a%E2%80%AEb"),
            ("", ""),
        ] {
            assert_eq!(stem(custom_id), expected);
        }
    }

    proptest! {
        #[test]
        fn no_two_custom_ids_share_a_name(a in "[a./%\u{e9}-]{0,300}", b in "[a./%\u{e9}-]{0,300}") {
            prop_assert_eq!(a == b, stem(&a) == stem(&b));
            let name = format!(".{}-{}.webp.tmp", stem(&a), 128);
            prop_assert!(name.len() <= 255 && !name.contains('/'), "{}", name);
        }
    }

    #[test]
    fn long_names_differ_by_their_hash() {
        let long = |end: &str| format!("{}{end}", "é".repeat(300));
        assert_ne!(stem(&long("a")), stem(&long("b")));
        // The cut name of one is not the name of another that spells it out.
        let cut = stem(&long("a"));
        assert_ne!(stem(&cut), cut);
    }
}
