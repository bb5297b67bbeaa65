//! `batchd files`: the files that lie at a provider.
//!
//! They are asked of the provider itself; no daemon is needed.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use bytesize::ByteSize;
use rustix::fs::OFlags;
use serde::Serialize;
use serde_json::value::RawValue;

use super::args::{DeleteFilesArgs, FilesCommand, GetFileArgs, ListFilesArgs, ShowFileArgs, UploadArgs};
use super::download::Download;
use super::progress::bar_of_bytes;
use super::remote::{self, patiently};
use super::report::Printer;
use super::{Done, Exit, Failure, block_on};
use crate::domain::Outcome;
use crate::provider::{
    AllFiles, Called, FileQuery, Provider, RemoteFile, SINGLE_UPLOAD_BYTES_MAX, UPLOAD_BYTES_MAX, Upload,
    refused_with,
};

pub(super) fn run(command: FilesCommand, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    match command {
        FilesCommand::List(args) => list(args, config, printer),
        FilesCommand::Show(args) => show(&args, config, printer),
        FilesCommand::Upload(args) => upload(&args, config, printer),
        FilesCommand::Get(args) => get(&args, config, printer),
        FilesCommand::Delete(args) => delete(&args, config, printer),
    }
}

fn list(args: ListFilesArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let provider = remote::provider(config, args.remote.provider.as_deref())?;
    let query = FileQuery { purpose: args.purpose, ..FileQuery::default() };
    let AllFiles { files, is_whole } = block_on(async {
        let all = patiently(async || provider.all_files(&query).await).await;
        all.map_err(|outcome| remote::failure(&provider, &outcome))
    })?;
    if !is_whole {
        printer.note(&format!(
            "warning: `{}` has more files, but its list can't be read to its end",
            provider.name()
        ));
    }
    if args.remote.json {
        printer.json(&files.iter().map(|file| &file.raw).collect::<Vec<&Box<RawValue>>>())?;
    } else if files.is_empty() {
        let purpose = query.purpose.map(|purpose| format!(" for `{purpose}`")).unwrap_or_default();
        printer.note(&format!("no files{purpose} at `{}`", provider.name()));
    } else {
        printer.table(HEADER, files.iter().map(row))?;
    }
    Ok(Exit::Done)
}

const HEADER: [&str; 6] = ["ID", "NAME", "PURPOSE", "SIZE", "STATUS", "CREATED"];

fn row(file: &RemoteFile) -> [String; 6] {
    [
        file.id.clone(),
        file.filename.clone(),
        file.purpose.clone(),
        file.bytes.map(size).unwrap_or_default(),
        file.status.clone().unwrap_or_default(),
        file.created_at.map(|time| time.to_string()).unwrap_or_default(),
    ]
}

/// As providers count: 1 MB is a million bytes.
fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().si().to_string()
}

fn show(args: &ShowFileArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let provider = remote::provider(config, args.remote.provider.as_deref())?;
    let file = block_on(async {
        let file = patiently(async || provider.file(&args.id).await).await;
        file.map_err(|outcome| remote::failure(&provider, &outcome))
    })?;
    if args.remote.json {
        printer.json(&file.raw)?;
    } else {
        let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        printer.facts([
            ("id", Some(file.id.clone())),
            ("name", text(&file.filename)),
            ("purpose", text(&file.purpose)),
            ("size", file.bytes.map(|bytes| format!("{} ({bytes} bytes)", size(bytes)))),
            ("status", file.status.clone()),
            ("details", file.status_details.clone()),
            ("created", file.created_at.map(|time| time.to_string())),
            ("expires", file.expires_at.map(|time| time.to_string())),
        ])?;
    }
    Ok(Exit::Done)
}

fn upload(args: &UploadArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let provider = remote::provider(config, args.remote.provider.as_deref())?;
    let upload = opened(args)?;
    let bar = bar_of_bytes(&upload.name, Some(upload.length), printer);
    let progress = |bytes| bar.set_position(bytes);
    let in_parts = upload.length > SINGLE_UPLOAD_BYTES_MAX;
    let sent = block_on(async {
        // Once only: whether a lost upload arrived is for a person to see.
        Ok(if in_parts {
            provider.upload_in_parts(&upload, &progress).await
        } else {
            provider.upload(&upload, &progress).await
        })
    });
    bar.finish_and_clear();
    let file = sent?.map_err(|outcome| not_uploaded(&provider, &outcome, in_parts))?;
    if args.remote.json {
        printer.json(&file.raw)?;
    } else {
        printer.note(&format!("{} ({}) is at `{}` as", upload.name, size(upload.length), provider.name()));
        printer.data(&format!("{}\n", crate::diag::printable(&file.id)))?;
    }
    Ok(Exit::Done)
}

fn opened(args: &UploadArgs) -> Result<Upload, Failure> {
    let path = &args.file;
    let refused = |why: &str| Failure::new(Exit::Usage, format!("can't upload `{}`: {why}", path.display()));
    // A FIFO without a writer would hold the command up for ever.
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = File::options().read(true).custom_flags(nonblock).open(path);
    let file = file.map_err(|error| refused(&error.to_string()))?;
    let metadata = file.metadata().map_err(|error| refused(&error.to_string()))?;
    if !metadata.is_file() {
        return Err(refused("it is no regular file"));
    }
    match metadata.len() {
        0 => return Err(refused("it is empty")),
        length if length > UPLOAD_BYTES_MAX => {
            return Err(refused(&format!("it has {}, and providers take up to 8 GB", size(length))));
        }
        _ => {}
    }
    let name =
        path.file_name().and_then(|name| name.to_str()).ok_or_else(|| refused("its name is not UTF-8"))?;
    Ok(Upload {
        name: name.to_owned(),
        purpose: args.purpose.clone(),
        file: Arc::new(file),
        length: metadata.len(),
        expires_after: args.expires_after,
    })
}

fn not_uploaded(provider: &Provider, outcome: &Outcome, in_parts: bool) -> Failure {
    let failure = remote::failure(provider, outcome);
    match outcome {
        Outcome::Failed(lost) if lost.maybe_paid => {
            failure.hint("it may have arrived all the same: `batchd files list` shows whether")
        }
        Outcome::Refused(_) if in_parts && matches!(refused_with(outcome), Some(404 | 405 | 501)) => {
            let limit = size(SINGLE_UPLOAD_BYTES_MAX);
            failure.hint(format!(
                "files above {limit} go up in parts, and it seems to have no `/uploads`: split the file"
            ))
        }
        Outcome::Answered(_)
        | Outcome::Refused(_)
        | Outcome::Unanswerable(_)
        | Outcome::Throttled { .. }
        | Outcome::Failed(_)
        | Outcome::Blocked(_) => failure,
    }
}

/// What was downloaded, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Got<'a> {
    id: &'a str,
    path: String,
    bytes: u64,
}

fn get(args: &GetFileArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let provider = remote::provider(config, args.provider.as_deref())?;
    let bar = bar_of_bytes(&args.id, None, printer);
    let progress = |bytes| bar.set_position(bytes);
    let Some(out) = &args.out else {
        let mut sink = Sink { write: printer.sink(), is_touched: false, broken: None };
        let fetched = block_on(async { Ok(fetch(&provider, &args.id, &mut sink, &progress).await) });
        let flushed = sink.write.flush();
        let broken = sink.broken.map_or(flushed, Err);
        bar.finish_and_clear();
        let fetched = fetched?;
        // Why stdout took no more is ours to say, not the provider's.
        broken.map_err(Failure::Output)?;
        fetched.map_err(|outcome| remote::failure(&provider, &outcome))?;
        return Ok(Exit::Done);
    };
    let path = out.display();
    let failed = |error: io::Error| Failure::new(Exit::StateIo, format!("can't write `{path}`: {error}"));
    let exists = || Failure::new(Exit::Usage, format!("`{path}` exists")).hint("`--force` replaces it");
    if !args.force && out.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let mut download = Download::begin(out).map_err(failed)?;
    let mut sink = Sink { write: download.file(), is_touched: false, broken: None };
    let fetched = block_on(async { Ok(fetch(&provider, &args.id, &mut sink, &progress).await) });
    bar.finish_and_clear();
    if let Some(error) = sink.broken {
        return Err(failed(error));
    }
    let bytes = fetched?.map_err(|outcome| remote::failure(&provider, &outcome))?;
    download.finish(args.force).map_err(|error| {
        if error.kind() == io::ErrorKind::AlreadyExists { exists() } else { failed(error) }
    })?;
    if args.json {
        printer.json(&Got { id: &args.id, path: path.to_string(), bytes })?;
    } else {
        printer.note(&format!("{} ({}) is in {path}", args.id, size(bytes)));
    }
    Ok(Exit::Done)
}

/// Downloads; tried again only while nothing has come.
async fn fetch(
    provider: &Provider,
    id: &str,
    sink: &mut Sink<'_>,
    progress: &(dyn Fn(u64) + Sync),
) -> Called<u64> {
    let fetched = patiently(async || match provider.file_content(id, sink, u64::MAX, progress).await {
        Err(outcome) if !sink.is_touched => Err(outcome),
        last => Ok(last),
    });
    fetched.await?
}

/// Remembers what a transfer only calls an error.
struct Sink<'a> {
    write: &'a mut (dyn Write + Send),
    is_touched: bool,
    broken: Option<io::Error>,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.is_touched = true;
        self.write.write(bytes).inspect_err(|error| {
            // An interrupted write is made again.
            if error.kind() != io::ErrorKind::Interrupted {
                self.broken = Some(io::Error::new(error.kind(), error.to_string()));
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.write.flush()
    }
}

/// What became of one file, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Deleted<'a> {
    id: &'a str,
    deleted: bool,
}

fn delete(args: &DeleteFilesArgs, config: Option<&Path>, printer: &mut Printer<'_>) -> Done {
    let provider = remote::provider(config, args.remote.provider.as_deref())?;
    let results = block_on(async {
        let mut results = Vec::new();
        for id in &args.ids {
            results.push((id, provider.delete_file(id).await));
        }
        Ok(results)
    })?;
    let mut exit = Exit::Done;
    let mut done = Vec::new();
    for (id, deleted) in results {
        if let Err(outcome) = &deleted {
            exit = printer.failure(remote::failure(&provider, outcome));
        } else if !args.remote.json {
            printer.note(&format!("{id} is deleted"));
        }
        done.push(Deleted { id, deleted: deleted.is_ok() });
    }
    if args.remote.json {
        printer.json(&done)?;
    }
    Ok(exit)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cli::remote::tests::Script;
    use crate::provider::testing::http;

    const FILE: &str = r#"{"id":"file-1","object":"file","bytes":1234567,"created_at":1700000000,"filename":"train.jsonl","purpose":"fine-tune","status":"processed"}"#;

    #[test]
    fn files_are_listed_over_all_pages_and_shown() {
        let list = format!(r#"{{"data":[{FILE}],"has_more":true}}"#);
        let more = r#"{"data":[{"id":"file-2","bytes":null,"filename":"a\u001bb"}],"has_more":false}"#;
        let script = Script::new(&[("200 OK", &list), ("200 OK", more)]);
        let printed = script.batchd(&["files", "list"]);
        assert_eq!((printed.exit, printed.err.as_str()), (Exit::Done, ""));
        insta::assert_snapshot!(printed.out, @r"
        ID      NAME         PURPOSE    SIZE    STATUS     CREATED
        file-1  train.jsonl  fine-tune  1.2 MB  processed  2023-11-14T22:13:20.000Z
        file-2  a\u{1b}b
        ");
        let script = Script::new(&[("200 OK", &list), ("200 OK", more)]);
        let printed = script.batchd(&["files", "list", "--purpose", "batch", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&printed.out).unwrap();
        assert_eq!((&json[0]["bytes"], &json[1]["bytes"]), (&1_234_567.into(), &serde_json::Value::Null));
        assert_eq!(script.asked()[0], "GET /v1/files?purpose=batch&order=desc HTTP/1.1");
        let script = Script::new(&[("200 OK", FILE)]);
        let printed = script.batchd(&["files", "show", "file-1"]);
        insta::assert_snapshot!(printed.out, @r"
        id       file-1
        name     train.jsonl
        purpose  fine-tune
        size     1.2 MB (1234567 bytes)
        status   processed
        created  2023-11-14T22:13:20.000Z
        ");
        assert_eq!(script.batchd(&["files", "show", "file-1", "--json"]).out, format!("{FILE}\n"));
        let script = Script::new(&[("200 OK", &list)]);
        let printed = script.batchd(&["files", "list"]);
        assert_eq!(printed.err, "warning: `local` has more files, but its list can't be read to its end\n");
        assert_eq!((printed.exit, printed.out.lines().count()), (Exit::Done, 2));
        let script = Script::new(&[("200 OK", r#"{"data":[]}"#)]);
        assert_eq!(script.batchd(&["files", "list"]).err, "no files at `local`\n");
        assert_eq!(script.batchd(&["files", "list", "--purpose", "x"]).err, "no files for `x` at `local`\n");
    }

    #[test]
    fn an_upload_prints_the_id_alone_on_stdout() {
        let script = Script::new(&[("200 OK", FILE)]);
        let path = script.file("train.jsonl", "{}\n");
        let printed = script.batchd(&["files", "upload", &path, "--expires-after", "30d"]);
        assert_eq!((printed.exit, printed.out.as_str()), (Exit::Done, "file-1\n"));
        assert_eq!(printed.err, "train.jsonl (3 B) is at `local` as\n");
        let sent = script.requests().pop().unwrap();
        for part in
            ["\r\n\r\nfine-tune\r\n", "\r\n\r\n2592000\r\n", "filename=\"train.jsonl\"", "\r\n\r\n{}\n\r\n--"]
        {
            assert!(sent.contains(part), "{part}: {sent}");
        }
        assert_eq!(script.batchd(&["files", "upload", &path, "--json"]).out, format!("{FILE}\n"));
    }

    #[test]
    fn an_upload_is_never_repeated_and_a_lost_one_may_have_arrived() {
        let script = Script::of_bytes(vec![Vec::new()]);
        let path = script.file("train.jsonl", "{}\n");
        let printed = script.batchd(&["files", "upload", &path]);
        assert_eq!((printed.exit, printed.out.as_str(), script.asked().len()), (Exit::Unreachable, "", 1));
        let hint = "  hint: it may have arrived all the same: `batchd files list` shows whether\n";
        assert!(printed.err.ends_with(hint), "{}", printed.err);
    }

    #[test]
    fn what_can_not_be_uploaded_is_refused_before_anything_is_sent() {
        let script = Script::new(&[("200 OK", FILE)]);
        let empty = script.file("empty", "");
        let folder = script.folder.path().to_str().unwrap().to_owned();
        let huge = script.file("huge", "");
        File::options().write(true).open(&huge).unwrap().set_len(UPLOAD_BYTES_MAX + 1).unwrap();
        for (path, why) in [
            (&empty, "it is empty"),
            (&folder, "it is no regular file"),
            (&format!("{folder}/none"), "No such file or directory (os error 2)"),
            (&huge, "it has 8.6 GB, and providers take up to 8 GB"),
        ] {
            let printed = script.batchd(&["files", "upload", path]);
            assert_eq!(printed.exit, Exit::Usage, "{path}");
            assert!(printed.err.ends_with(&format!("`: {why}\n")), "{}", printed.err);
        }
        assert_eq!(script.asked().len(), 0);
    }

    #[test]
    fn large_files_go_up_in_parts_where_the_provider_takes_them() {
        let script = Script::new(&[("404 Not Found", r#"{"detail":"Not Found"}"#)]);
        let path = script.file("big.jsonl", "");
        File::options().write(true).open(&path).unwrap().set_len(SINGLE_UPLOAD_BYTES_MAX + 1).unwrap();
        let printed = script.batchd(&["files", "upload", &path]);
        assert_eq!(printed.exit, Exit::SomeFailed);
        assert_eq!(
            printed.err,
            "error: `local` refused with 404: Not Found\n  hint: files above 512.0 MB go up in parts, and it seems to \
             have no `/uploads`: split the file\n"
        );
        assert_eq!(script.asked(), ["POST /v1/uploads HTTP/1.1"]);
    }

    #[test]
    fn content_goes_to_stdout_or_into_a_file_that_was_not_there() {
        let script = Script::new(&[("200 OK", "abc")]);
        let printed = script.batchd(&["files", "get", "file-1"]);
        assert_eq!((printed.exit, printed.out.as_str(), printed.err.as_str()), (Exit::Done, "abc", ""));
        let out = script.path("out").to_str().unwrap().to_owned();
        let printed = script.batchd(&["files", "get", "file-1", "-o", &out]);
        assert_eq!((printed.out.as_str(), printed.err.as_str()), ("", "file-1 (3 B) is in DIR/out\n"));
        assert_eq!(fs::read(&out).unwrap(), b"abc");
        fs::write(&out, "mine").unwrap();
        let printed = script.batchd(&["files", "get", "file-1", "-o", &out]);
        assert_eq!(printed.exit, Exit::Usage);
        assert_eq!(printed.err, "error: `DIR/out` exists\n  hint: `--force` replaces it\n");
        assert_eq!((fs::read(&out).unwrap(), script.asked().len()), (b"mine".to_vec(), 2));
        let printed = script.batchd(&["files", "get", "file-1", "-o", &out, "--force", "--json"]);
        insta::assert_snapshot!(printed.out, @r#"
        {
          "id": "file-1",
          "path": "DIR/out",
          "bytes": 3
        }
        "#);
        assert_eq!(fs::read(&out).unwrap(), b"abc");
    }

    #[test]
    fn a_download_that_ends_early_leaves_nothing_and_is_not_joined_to_another() {
        let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".to_vec();
        let script = Script::of_bytes(vec![cut, http("200 OK", "", "0123456789")]);
        let out = script.path("out").to_str().unwrap().to_owned();
        let printed = script.batchd(&["files", "get", "file-1", "-o", &out]);
        assert_eq!(printed.exit, Exit::Unreachable, "{}", printed.err);
        let names = fs::read_dir(script.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["batchd.toml"]);
        assert_eq!(script.asked().len(), 1);
    }

    #[test]
    fn a_download_is_tried_again_while_nothing_has_come() {
        let script = Script::new(&[("503 Busy", ""), ("200 OK", "abc")]);
        assert_eq!(script.batchd(&["files", "get", "file-1"]).out, "abc");
        let script = Script::new(&[("404 No", "")]);
        let printed = script.batchd(&["files", "get", "file-1"]);
        assert_eq!((printed.exit, printed.out.as_str()), (Exit::SomeFailed, ""));
        assert_eq!(script.asked().len(), 1);
        let printed = script.batchd(&["files", "get", "file-1", "-o", "/no/such/folder/out"]);
        assert_eq!(printed.exit, Exit::StateIo);
    }

    #[test]
    fn every_file_is_deleted_that_can_be() {
        let gone = r#"{"id":"file-1","deleted":true}"#;
        let script = Script::new(&[("404 No", ""), ("200 OK", gone)]);
        let printed = script.batchd(&["files", "delete", "file-0", "file-1"]);
        assert_eq!((printed.exit, printed.out.as_str()), (Exit::SomeFailed, ""));
        assert_eq!(printed.err, "error: `local` refused with 404\nfile-1 is deleted\n");
        let script = Script::new(&[("404 No", ""), ("200 OK", gone)]);
        let printed = script.batchd(&["files", "delete", "file-0", "file-1", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&printed.out).unwrap();
        assert_eq!((&json[0]["deleted"], &json[1]["deleted"]), (&false.into(), &true.into()));
        assert_eq!(script.asked(), ["DELETE /v1/files/file-0 HTTP/1.1", "DELETE /v1/files/file-1 HTTP/1.1"]);
    }
}
