//! One file's content: what of it is durable, and what a power cut leaves of the rest.

use fastrand::Rng;

#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) durable: Vec<u8>,
    pending: Vec<Change>,
    /// It was written through the seam, and so must never be around it.
    pub(super) is_ours: bool,
}

#[derive(Debug)]
pub(super) enum Change {
    Append(Vec<u8>),
    Cut(u64),
}

impl Content {
    /// Of a file that came around the seam.
    pub(super) fn adopted(durable: Vec<u8>) -> Self {
        Self { durable, ..Self::default() }
    }

    pub(super) fn change(&mut self, change: Change) {
        self.is_ours = true;
        self.pending.push(change);
    }

    /// What is there after the first `changes` changes.
    fn after(&self, changes: usize) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for change in &self.pending[..changes] {
            match change {
                Change::Append(more) => bytes.extend_from_slice(more),
                Change::Cut(length) => bytes.truncate(usize::try_from(*length).unwrap()),
            }
        }
        bytes
    }

    pub(super) fn live(&self) -> Vec<u8> {
        self.after(self.pending.len())
    }

    pub(super) fn sync(&mut self) {
        self.durable = self.live();
        self.pending.clear();
    }

    /// What a cut leaves.
    pub(super) fn surviving(&self, rng: &mut Rng) -> Vec<u8> {
        match rng.u8(..5) {
            0 => self.durable.clone(),
            1 => self.live(),
            2 => {
                let mut bytes = self.live();
                // Only what was appended behind the last cut and the durable part can lack its data.
                let written = self.pending.iter().rev().map_while(|change| match change {
                    Change::Append(more) => Some(more.len()),
                    Change::Cut(_) => None,
                });
                let start = bytes.len() - written.sum::<usize>();
                if start < bytes.len() {
                    let from = rng.usize(start..bytes.len());
                    let to = rng.usize(from..=bytes.len());
                    bytes[from..to].fill(0);
                }
                bytes
            }
            _ => {
                let whole = rng.usize(..=self.pending.len());
                let mut bytes = self.after(whole);
                if let Some(Change::Append(torn)) = self.pending.get(whole) {
                    bytes.extend_from_slice(&torn[..rng.usize(..=torn.len())]);
                }
                bytes
            }
        }
    }
}
