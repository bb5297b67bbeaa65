//! `ca_file`: the certificates that a provider's server may be known by, beside those that the system trusts.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Serialize, Serializer};

use super::load::{KeyReader, open_regular};
use super::schema::Paths;
use super::section::{Document, Section};
use super::shown;

/// A system's whole bundle has a fifth of it.
const BYTES_MAX: u64 = 1024 * 1024;

/// A PEM bundle of certificates, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaFile {
    pub path: PathBuf,
    /// Empty where keys are not read.
    pub pem: Arc<[u8]>,
}

impl Serialize for CaFile {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        shown::path(&self.path, serializer)
    }
}

pub(super) fn read(
    document: &Document<'_>,
    section: &mut Section<'_>,
    paths: &Paths<'_>,
    keys: &KeyReader<'_>,
) -> Option<CaFile> {
    let found = section.text("ca_file");
    let path = paths.one(found)?;
    if keys.is_ignored() {
        return Some(CaFile { path, pem: Arc::default() });
    }
    match read_bundle(&path) {
        Ok(pem) => Some(CaFile { path, pem }),
        Err(problem) => {
            let message = format!("the file `{}` {problem}", path.display());
            let hint = "expected certificates in PEM: `-----BEGIN CERTIFICATE-----` and so on";
            document.push(document.error(found.map(|found| found.at), message).hint(hint));
            None
        }
    }
}

fn read_bundle(path: &Path) -> Result<Arc<[u8]>, String> {
    let mut pem = Vec::new();
    let read = open_regular(path).and_then(|(file, _)| file.take(BYTES_MAX + 1).read_to_end(&mut pem));
    read.map_err(|error| format!("can't be read: {error}"))?;
    if pem.len() as u64 > BYTES_MAX {
        return Err("is larger than `1MiB`".to_owned());
    }
    let mut store = RootCertStore::empty();
    for (number, certificate) in (1..).zip(CertificateDer::pem_slice_iter(&pem)) {
        let added = certificate.map_err(|error| error.to_string());
        let added = added.and_then(|der| store.add(der).map_err(|error| error.to_string()));
        added.map_err(|error| format!("can't be used, its certificate {number} is wrong: {error}"))?;
    }
    if store.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    Ok(pem.into())
}
