//! Names in folders, and how they change.

use std::collections::BTreeMap;
use std::ffi::OsString;

/// Where a file or folder stands among the nodes of an image.
pub(super) type NodeId = usize;

/// The names in each folder that has some.
pub(super) type Folders = BTreeMap<NodeId, BTreeMap<OsString, NodeId>>;

/// A name in a folder.
pub(super) type Place = (NodeId, OsString);

/// One change of names: a node gets one, loses one, or both.
#[derive(Debug)]
pub(super) struct Rename {
    pub(super) from: Option<Place>,
    pub(super) to: Option<(Place, NodeId)>,
}

impl Rename {
    pub(super) fn folders(&self) -> impl Iterator<Item = NodeId> {
        let from = self.from.as_ref().map(|(folder, _)| *folder);
        [from, self.to.as_ref().map(|((folder, _), _)| *folder)].into_iter().flatten()
    }

    /// The folder whose sync makes it durable.
    pub(super) fn promised_by(&self) -> NodeId {
        let to = self.to.as_ref().map(|((folder, _), _)| *folder);
        to.or_else(|| self.from.as_ref().map(|(folder, _)| *folder)).expect("a change changes something")
    }

    pub(super) fn is_of(&self, place: &Place) -> bool {
        self.from.as_ref() == Some(place) || self.to.as_ref().is_some_and(|(to, _)| to == place)
    }

    pub(super) fn apply(&self, folders: &mut Folders) {
        if let Some((folder, name)) = &self.from {
            folders.entry(*folder).or_default().remove(name);
        }
        if let Some(((folder, name), node)) = &self.to {
            folders.entry(*folder).or_default().insert(name.clone(), *node);
        }
    }
}
