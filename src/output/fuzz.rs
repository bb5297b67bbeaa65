//! What must hold of every journal when results are made of it: for `crate::fuzzing`.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::journal::Reader;

/// Results are made of the `records` that recovery settled, no more, no fewer, each as the success it was
/// counted as.
pub(crate) fn journal(journal: Vec<u8>, total: u32, records: &BTreeMap<u32, bool>) {
    let journal = Box::new(Cursor::new(journal));
    let mut reader = Reader::over(journal, PathBuf::from("results.log"), CancellationToken::new());
    let index = reader.index(0, total).expect("memory can be read");
    let mut published = BTreeMap::new();
    let mut requests = 0;
    let read = reader.in_order(&index, |request, record| {
        assert_eq!(request, requests, "results stand in the order of the input");
        requests += 1;
        if let Some(record) = record {
            assert_eq!(record.index, request);
            let line = record.published();
            assert!(line.ends_with(b"}") && !line.contains(&b'\n'), "a result is one line");
            published.insert(request, record.is_success());
        }
        Ok(())
    });
    read.expect("memory can be read");
    assert_eq!(requests, total);
    assert_eq!(published, *records);
}
