//! What must hold of every journal when results are made of it, and of every name that a provider gives a file: for
//! `crate::fuzzing`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::{Component, Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::folder::ResultsFolder;
use super::journal::Reader;
use super::tuning::free_name;

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

/// Bytes of a file's name, less those of its temporary one.
const NAME_BYTES_MAX: usize = 255 - ".".len() - ".tmp".len();

/// Files that a provider calls `theirs` lie in the results folder itself, each under a name of its own.
pub(crate) fn names(theirs: &[String]) {
    let mut taken: BTreeSet<String> = ResultsFolder::NAMES.map(str::to_owned).into();
    let mut ours = taken.clone();
    for theirs in theirs.iter().chain(theirs) {
        let name = free_name(theirs, &mut taken);
        let mut components = Path::new(&name).components();
        assert!(
            matches!(components.next(), Some(Component::Normal(only)) if only == name.as_str()),
            "{name}"
        );
        assert!(
            components.next().is_none() && !name.starts_with('.') && name.len() <= NAME_BYTES_MAX,
            "{name}"
        );
        assert!(!name.contains(char::is_control), "{name:?}");
        assert!(ours.insert(name.to_lowercase()), "{name} stands there already");
    }
}
