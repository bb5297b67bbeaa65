//! What the benchmarks have in common: the stand-in server as a process of its own, and requests for it.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;

pub(crate) const BATCHD: &str = env!("CARGO_BIN_EXE_batchd");

/// A request of about 260 bytes, a different one for each line.
pub(crate) fn body(line: u32) -> Bytes {
    let prompt = prompt(line);
    format!(
        r#"{{"model":"bench","messages":[{{"role":"system","content":"You are brief."}},{{"role":"user","content":"{prompt}"}}],"temperature":0,"max_tokens":100}}"#
    )
    .into()
}

pub(crate) fn prompt(line: u32) -> String {
    format!(
        "Summarise article {line:07} in one sentence: the harbour was quiet, the ferry late, and nobody minded"
    )
}

pub(crate) fn custom_id(line: u32) -> String {
    format!("article-{line:07}")
}

/// The stand-in server; ends with the value.
pub(crate) struct Server {
    process: Child,
    pub(crate) base_url: String,
}

impl Server {
    pub(crate) fn start() -> Result<Self> {
        let mut process = Command::new(BATCHD)
            .args(["simulate", "--listen", "127.0.0.1:0", "--no-ledger"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut base_url = String::new();
        BufReader::new(process.stdout.take().context("its stdout is piped")?).read_line(&mut base_url)?;
        ensure!(!base_url.is_empty(), "the stand-in server did not start");
        Ok(Self { process, base_url: base_url.trim_end().to_owned() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have died; then there is nothing to end.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Writes a job as a JSONL file.
pub(crate) fn write_job(path: &Path, bodies: impl IntoIterator<Item = Bytes>) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for (line, body) in (0..).zip(bodies) {
        let custom_id = custom_id(line);
        write!(file, r#"{{"custom_id":"{custom_id}","method":"POST","url":"/v1/chat/completions","body":"#)?;
        file.write_all(&body)?;
        file.write_all(b"}\n")?;
    }
    Ok(file.flush()?)
}
