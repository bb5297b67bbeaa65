//! The durable image: contents and names that a power cut would leave, beside those that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;

use super::content::{Change, Content};
use super::names::{Folders, NodeId, Place, Rename};
use crate::disk::Act;

const ROOT: NodeId = 0;

/// What is known of a folder: how it is, and what of that is durable.
#[derive(Debug)]
pub(super) struct Image {
    root: PathBuf,
    /// A folder in it that is not looked at.
    without: PathBuf,
    nodes: Vec<Node>,
    by_inode: BTreeMap<(u64, u64), NodeId>,
    live: Folders,
    durable: Folders,
    /// Changes of names that are not durable, in the order in which they were made.
    pending: Vec<Rename>,
}

#[derive(Debug)]
enum Node {
    File(Content),
    Folder,
}

impl Image {
    /// Of what lies in `root`, all of it durable.
    pub(super) fn of(root: &Path, without: &Path) -> Self {
        let mut image = Self {
            root: root.to_owned(),
            without: without.to_owned(),
            nodes: vec![Node::Folder],
            by_inode: BTreeMap::new(),
            live: Folders::new(),
            durable: Folders::new(),
            pending: Vec::new(),
        };
        image.adopt_all(root, ROOT);
        image
    }

    /// Before an act: takes in what it is about.
    pub(super) fn prepare(&mut self, act: &Act<'_>) {
        match act {
            Act::Append { file, .. }
            | Act::Overwrite { file, .. }
            | Act::Cut { file, .. }
            | Act::Sync { file, .. } => {
                self.node_of(file);
            }
            Act::Rename { from, to } | Act::Link { from, to } => {
                self.adopt(from);
                self.adopt(to);
            }
            Act::Create { path }
            | Act::MakeDir { path }
            | Act::SyncDir { path }
            | Act::Reserve { path, .. }
            | Act::Remove { path } => self.adopt(path),
        }
    }

    /// After an act.
    pub(super) fn note(&mut self, act: &Act<'_>) {
        match act {
            Act::Create { path } => self.create(path),
            Act::Append { file, bytes, .. } => self.content(file).change(Change::Append(bytes.to_vec())),
            // It changes nothing that is seen, and nothing of what a cut leaves until it is synced.
            Act::Overwrite { file, offset, bytes, .. } => {
                let (live, from) = (self.content(file).live(), usize::try_from(*offset).unwrap());
                assert_eq!(&live[from..from + bytes.len()], *bytes, "what is written again is the same");
            }
            Act::Cut { file, length, .. } => self.content(file).change(Change::Cut(*length)),
            Act::Reserve { .. } => {}
            Act::Sync { file, .. } => self.content(file).sync(),
            Act::MakeDir { path } => self.make_folders(path),
            Act::SyncDir { path } => {
                let folder = self.find(path).expect("a folder that was synced is there");
                self.sync_folder(folder);
            }
            Act::Rename { from, .. } if from.starts_with(&self.without) => {}
            Act::Rename { from, to } => {
                let node = self.find(from).expect("what was renamed is there");
                let (from, to) = (self.place(from), self.place(to));
                self.rename(Rename { from: Some(from), to: Some((to, node)) });
            }
            Act::Link { from, to } => {
                let node = self.find(from).expect("what was linked is there");
                let to = self.place(to);
                self.rename(Rename { from: None, to: Some((to, node)) });
            }
            Act::Remove { path } => self.remove(self.place(path)),
        }
    }

    /// A sync that was only pretended is made after all.
    pub(super) fn sync_file(&mut self, file: &fs::File) {
        self.content(file).sync();
    }

    /// Like [`Self::sync_file`], of a folder; one that is gone needs none.
    pub(super) fn sync_path(&mut self, path: &Path) {
        if let Some(folder) = self.find(path) {
            self.sync_folder(folder);
        }
    }

    /// The last look before the power is cut: takes in what came around the seam. Panics where that changed a file
    /// which is written through it.
    pub(super) fn end(&mut self) {
        let root = self.root.clone();
        self.adopt_all(&root, ROOT);
        self.compare(&root, ROOT);
    }

    /// Writes what a cut leaves into the empty folder `target`.
    pub(super) fn write(&self, target: &Path, rng: &mut Rng) {
        let names = self.surviving_names(rng);
        self.write_folder(ROOT, target, &names, &mut BTreeMap::new(), rng);
    }

    fn name(&self, (folder, name): &(NodeId, OsString)) -> Option<NodeId> {
        self.live.get(folder).and_then(|names| names.get(name)).copied()
    }

    fn content(&mut self, file: &fs::File) -> &mut Content {
        let node = self.node_of(file);
        self.content_of(node)
    }

    fn content_of(&mut self, node: NodeId) -> &mut Content {
        let Node::File(content) = &mut self.nodes[node] else { panic!("a folder was taken for a file") };
        content
    }

    /// The node of an open file; one that is not known counts as durable.
    fn node_of(&mut self, file: &fs::File) -> NodeId {
        let inode = inode(&file.metadata().unwrap());
        if let Some(known) = self.by_inode.get(&inode) {
            return *known;
        }
        let durable = fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        self.add(Node::File(Content::adopted(durable)), inode)
    }

    fn add(&mut self, node: Node, inode: (u64, u64)) -> NodeId {
        self.nodes.push(node);
        self.by_inode.insert(inode, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn below<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).expect("a probe is asked about its own folder")
    }

    /// What has a path now.
    fn find(&self, path: &Path) -> Option<NodeId> {
        self.below(path).iter().try_fold(ROOT, |folder, name| self.name(&(folder, name.to_owned())))
    }

    /// The folder that a path is in, and its name there.
    fn place(&self, path: &Path) -> Place {
        let folder = self.find(path.parent().unwrap()).expect("the folder of what was changed is there");
        (folder, path.file_name().unwrap().to_owned())
    }

    /// Takes in, as durable, what came to a path around the seam; forgets what went from it.
    fn adopt(&mut self, path: &Path) {
        let (mut folder, mut real) = (ROOT, self.root.clone());
        for name in self.below(path) {
            real.push(name);
            if real == self.without {
                return;
            }
            let Some(node) = self.adopt_name(&real, folder, name) else { return };
            folder = node;
            if matches!(self.nodes[node], Node::File(_)) {
                return;
            }
        }
    }

    fn adopt_name(&mut self, real: &Path, folder: NodeId, name: &OsStr) -> Option<NodeId> {
        let found = fs::symlink_metadata(real).ok();
        let place = (folder, name.to_owned());
        let known = self.name(&place);
        let is_same = |node| found.as_ref().is_some_and(|m| self.by_inode.get(&inode(m)) == Some(&node));
        if let Some(node) = known.filter(|node| is_same(*node)) {
            return Some(node);
        }
        if self.pending.iter().any(|rename| rename.is_of(&place)) {
            // Changes of that name that are still open lie before this one. Those of others stay open.
            self.sync_folder(folder);
        }
        let node = found.and_then(|found| self.adopt_node(real, &found));
        let from = known.map(|_| place.clone());
        let adopted = Rename { from, to: node.map(|node| (place, node)) };
        adopted.apply(&mut self.live);
        adopted.apply(&mut self.durable);
        node
    }

    fn adopt_node(&mut self, real: &Path, found: &fs::Metadata) -> Option<NodeId> {
        let inode = inode(found);
        if let Some(node) = self.by_inode.get(&inode) {
            Some(*node)
        } else if found.is_dir() {
            Some(self.add(Node::Folder, inode))
        } else if found.is_file() {
            let durable = fs::read(real).unwrap();
            Some(self.add(Node::File(Content::adopted(durable)), inode))
        } else {
            None
        }
    }

    /// Adopts everything below a folder.
    fn adopt_all(&mut self, real: &Path, folder: NodeId) {
        for entry in fs::read_dir(real).unwrap() {
            let path = entry.unwrap().path();
            if path == self.without {
                continue;
            }
            if let Some(node) = self.adopt_name(&path, folder, path.file_name().unwrap())
                && matches!(self.nodes[node], Node::Folder)
            {
                self.adopt_all(&path, node);
            }
        }
    }

    /// Panics if the files are not as the acts have made them: somebody wrote around the seam. What was never written
    /// through it is taken in as it is.
    fn compare(&mut self, real: &Path, folder: NodeId) {
        let names: Vec<_> =
            self.live.get(&folder).into_iter().flatten().map(|(n, id)| (n.clone(), *id)).collect();
        for (name, node) in names {
            let path = real.join(name);
            let Node::File(content) = &mut self.nodes[node] else {
                self.compare(&path, node);
                continue;
            };
            let found = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            if content.is_ours {
                assert!(found == content.live(), "{} was written around the seam", path.display());
            } else {
                content.durable = found;
            }
        }
    }

    fn create(&mut self, path: &Path) {
        let place = self.place(path);
        let node = if let Some(known) = self.name(&place) {
            known
        } else {
            let inode = inode(&fs::metadata(path).unwrap());
            let node = self.add(Node::File(Content::default()), inode);
            self.rename(Rename { from: None, to: Some((place, node)) });
            node
        };
        self.content_of(node).change(Change::Cut(0));
    }

    /// Notes a new folder, and those above it that were not there.
    fn make_folders(&mut self, path: &Path) {
        let (mut folder, mut real) = (ROOT, self.root.clone());
        for name in self.below(path) {
            real.push(name);
            let place = (folder, name.to_owned());
            folder = self.name(&place).unwrap_or_else(|| {
                let node = self.add(Node::Folder, inode(&fs::metadata(&real).unwrap()));
                self.rename(Rename { from: None, to: Some((place, node)) });
                node
            });
        }
    }

    /// Notes that a name went, and before it every name below it.
    fn remove(&mut self, place: Place) {
        let Some(node) = self.name(&place) else { return };
        let below: Vec<OsString> =
            self.live.get(&node).into_iter().flat_map(BTreeMap::keys).cloned().collect();
        for name in below {
            self.remove((node, name));
        }
        self.rename(Rename { from: Some(place), to: None });
    }

    fn rename(&mut self, rename: Rename) {
        rename.apply(&mut self.live);
        self.pending.push(rename);
    }

    /// Makes the names in a folder durable, and whatever earlier changes those depend on.
    fn sync_folder(&mut self, folder: NodeId) {
        let mut needed = BTreeSet::new();
        let mut left = Vec::new();
        let mut done = Vec::new();
        for rename in std::mem::take(&mut self.pending).into_iter().rev() {
            if rename.promised_by() == folder || rename.folders().any(|folder| needed.contains(&folder)) {
                needed.extend(rename.folders());
                done.push(rename);
            } else {
                left.push(rename);
            }
        }
        done.iter().rev().for_each(|rename| rename.apply(&mut self.durable));
        left.reverse();
        self.pending = left;
    }

    /// The names that a cut leaves.
    fn surviving_names(&self, rng: &mut Rng) -> Folders {
        let mut folders = self.durable.clone();
        // All, none, or each by a throw of the dice: what happened long ago is more likely to be there.
        let mood = rng.u8(..4);
        let mut lost = BTreeSet::new();
        for rename in &self.pending {
            let stays = mood == 0 || (mood > 1 && rng.u8(..4) > 0);
            if !stays || rename.folders().any(|folder| lost.contains(&folder)) {
                lost.extend(rename.folders());
            } else {
                rename.apply(&mut folders);
            }
        }
        folders
    }

    /// Writes a folder as a cut left it. A file that has two names is one there, too.
    fn write_folder(
        &self,
        folder: NodeId,
        target: &Path,
        names: &Folders,
        written: &mut BTreeMap<NodeId, PathBuf>,
        rng: &mut Rng,
    ) {
        for (name, node) in names.get(&folder).into_iter().flatten() {
            let path = target.join(name);
            match &self.nodes[*node] {
                Node::Folder => {
                    fs::create_dir(&path).unwrap();
                    self.write_folder(*node, &path, names, written, rng);
                }
                Node::File(content) => {
                    if let Some(first) = written.get(node) {
                        fs::hard_link(first, &path).unwrap();
                    } else {
                        fs::write(&path, content.surviving(rng)).unwrap();
                        written.insert(*node, path);
                    }
                }
            }
        }
    }
}

fn inode(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
