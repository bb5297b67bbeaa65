//! What the recorder takes for durable, rule by rule.

use std::io::Write as _;

use super::*;
use crate::disk::{self, File};

/// Cuts to try: more than enough for each outcome of a rule.
const SEEDS: u64 = 200;

struct World {
    root: TempDir,
    recorder: Arc<Recorder>,
    #[expect(dead_code, reason = "held for its end")]
    installed: Installed,
}

impl World {
    fn new() -> Self {
        Self::with(|_| {}, Plan::default())
    }

    fn with(prepare: impl FnOnce(&Path), plan: Plan) -> Self {
        let root = folder();
        prepare(root.path());
        let plan = Plan { index: root.path().join("sled"), ..plan };
        let (recorder, installed) = Recorder::install(root.path(), plan);
        Self { root, recorder, installed }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn create(&self, name: &str, text: &str) -> File {
        let mut file = File::create(&self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    /// Everything that a cut may leave, each once: paths with contents, folders with none.
    fn cut(&self) -> BTreeSet<String> {
        self.recorder.cut();
        (0..SEEDS).map(|seed| shown(&self.image(seed))).collect()
    }

    fn image(&self, seed: u64) -> Tree {
        let target = folder();
        self.recorder.write_image(target.path(), seed);
        read_tree(target.path()).unwrap()
    }
}

fn shown(tree: &Tree) -> String {
    let file = |(path, bytes): (&PathBuf, &Vec<u8>)| {
        format!("{}={}", path.display(), String::from_utf8_lossy(bytes).replace('\0', "0"))
    };
    tree.iter().map(file).collect::<Vec<_>>().join(" ")
}

fn set<const N: usize>(texts: [&str; N]) -> BTreeSet<String> {
    texts.into_iter().map(str::to_owned).collect()
}

#[test]
fn content_is_durable_once_synced_and_then_a_prefix_or_zeros() {
    let world = World::new();
    let mut file = world.create("a", "one");
    disk::sync_dir(world.root.path()).unwrap();
    file.sync_data().unwrap();
    file.write_all(b"xy").unwrap();
    let expected = set(["a=one", "a=onex", "a=onexy", "a=one0y", "a=onex0", "a=one00"]);
    assert_eq!(world.cut(), expected);
}

#[test]
fn appends_survive_in_their_order() {
    let world = World::new();
    let mut file = world.create("a", "");
    disk::sync_dir(world.root.path()).unwrap();
    file.write_all(b"x").unwrap();
    file.write_all(b"y").unwrap();
    assert!(!world.cut().contains("a=y"));
}

#[test]
fn a_file_that_was_never_synced_is_absent_or_empty_or_torn() {
    let world = World::new();
    world.create("a", "x");
    assert_eq!(world.cut(), set(["", "a=", "a=x", "a=0"]));
}

#[test]
fn a_synced_file_may_lack_its_name() {
    let world = World::new();
    world.create("a", "x").sync_all().unwrap();
    assert_eq!(world.cut(), set(["", "a=x"]));
}

#[test]
fn a_file_that_was_cut_off_may_be_long_again() {
    let world = World::with(|root| fs::write(root.join("a"), "long").unwrap(), Plan::default());
    let file = File::append_private(&world.path("a")).unwrap();
    file.cut(1).unwrap();
    (&file).write_all(b"x").unwrap();
    assert_eq!(world.cut(), set(["a=long", "a=l", "a=lx", "a=l0"]));
}

#[test]
fn a_file_that_is_created_anew_may_have_its_old_content() {
    let world = World::with(|root| fs::write(root.join("a"), "old").unwrap(), Plan::default());
    world.create("a", "n");
    assert_eq!(world.cut(), set(["a=old", "a=", "a=n", "a=0"]));
}

#[test]
fn names_survive_as_a_prefix_of_each_folder() {
    let world = World::with(|root| fs::create_dir(root.join("other")).unwrap(), Plan::default());
    for name in ["a", "b", "other/c"] {
        world.create(name, "").sync_all().unwrap();
    }
    let both = set(["", "a=", "a= b=", "other/c=", "a= other/c=", "a= b= other/c="]);
    assert_eq!(world.cut(), both);
}

#[test]
fn a_replaced_file_is_the_old_one_or_the_new_one() {
    let world = World::with(|root| fs::write(root.join("a"), "old").unwrap(), Plan::default());
    world.create("t", "new").sync_all().unwrap();
    disk::rename(&world.path("t"), &world.path("a")).unwrap();
    assert_eq!(world.cut(), set(["a=old", "a=old t=new", "a=new"]));
}

#[test]
fn a_replacement_that_was_not_synced_may_be_empty() {
    let world = World::with(|root| fs::write(root.join("a"), "old").unwrap(), Plan::default());
    world.create("t", "n");
    disk::rename(&world.path("t"), &world.path("a")).unwrap();
    disk::sync_dir(world.root.path()).unwrap();
    assert_eq!(world.cut(), set(["a=", "a=n", "a=0"]));
}

#[test]
fn a_rename_over_two_folders_is_one_and_durable_with_the_one_it_leads_into() {
    let prepare = |root: &Path| {
        fs::create_dir(root.join("from")).unwrap();
        fs::create_dir(root.join("to")).unwrap();
        fs::write(root.join("from/a"), "x").unwrap();
    };
    for (synced, expected) in [("from", set(["from/a=x", "to/b=x"])), ("to", set(["to/b=x"]))] {
        let world = World::with(prepare, Plan::default());
        disk::rename(&world.path("from/a"), &world.path("to/b")).unwrap();
        disk::sync_dir(&world.path(synced)).unwrap();
        assert_eq!(world.cut(), expected, "{synced}");
    }
}

#[test]
fn syncing_a_folder_brings_what_its_names_depend_on() {
    let prepare = |root: &Path| {
        fs::create_dir(root.join("from")).unwrap();
        fs::create_dir(root.join("to")).unwrap();
        fs::write(root.join("from/a"), "x").unwrap();
    };
    let world = World::with(prepare, Plan::default());
    disk::rename(&world.path("from/a"), &world.path("to/a")).unwrap();
    world.create("from/b", "").sync_all().unwrap();
    disk::sync_dir(&world.path("from")).unwrap();
    assert_eq!(world.cut(), set(["from/b= to/a=x"]));
}

#[test]
fn what_lies_in_a_folder_without_a_durable_name_is_lost_with_it() {
    let world = World::new();
    let path = world.path("new/deep");
    let perform = || fs::create_dir_all(&path);
    probe::carry_out(Act::MakeDir { path: &path }, perform).unwrap();
    world.create("new/deep/a", "x").sync_all().unwrap();
    disk::sync_dir(&world.path("new/deep")).unwrap();
    assert_eq!(world.cut(), set(["", "new/deep/a=x"]));
}

#[test]
fn a_folder_is_made_to_stay() {
    let world = World::new();
    disk::make_private_dir(&world.path("new/deep")).unwrap();
    world.create("new/deep/a", "x").sync_all().unwrap();
    disk::sync_dir(&world.path("new/deep")).unwrap();
    assert_eq!(world.cut(), set(["new/deep/a=x"]));
}

#[test]
fn removed_files_may_come_back_until_their_folder_is_synced() {
    let prepare = |root: &Path| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/a"), "x").unwrap();
        fs::write(root.join("b"), "y").unwrap();
    };
    let world = World::with(prepare, Plan::default());
    disk::remove_dir_all(&world.path("d")).unwrap();
    disk::remove_file(&world.path("b")).unwrap();
    assert_eq!(world.cut(), set(["b=y d/a=x", "b=y", ""]));
    let world = World::with(prepare, Plan::default());
    disk::remove_file(&world.path("b")).unwrap();
    disk::sync_dir(world.root.path()).unwrap();
    assert_eq!(world.cut(), set(["d/a=x"]));
}

#[test]
fn a_second_name_is_the_same_file() {
    let world = World::new();
    let file = world.create("a", "x");
    disk::hard_link(&world.path("a"), &world.path("b")).unwrap();
    disk::sync_dir(world.root.path()).unwrap();
    file.sync_data().unwrap();
    world.recorder.cut();
    let image = folder();
    world.recorder.write_image(image.path(), 1);
    fs::write(image.path().join("a"), "changed").unwrap();
    assert_eq!(fs::read(image.path().join("b")).unwrap(), b"changed");
}

#[test]
fn an_open_file_is_followed_under_its_new_name() {
    let world = World::new();
    let mut file = world.create("a", "x");
    disk::rename(&world.path("a"), &world.path("b")).unwrap();
    disk::sync_dir(world.root.path()).unwrap();
    file.write_all(b"y").unwrap();
    file.sync_data().unwrap();
    assert_eq!(world.cut(), set(["b=xy"]));
}

#[test]
fn what_tests_put_there_themselves_is_durable() {
    let world = World::new();
    fs::create_dir(world.path("d")).unwrap();
    fs::write(world.path("d/a"), "x").unwrap();
    disk::rename(&world.path("d/a"), &world.path("d/b")).unwrap();
    disk::sync_dir(&world.path("d")).unwrap();
    fs::write(world.path("d/a"), "z").unwrap();
    assert_eq!(world.cut(), set(["d/a=z d/b=x"]));
}

#[test]
#[should_panic(expected = "was written around the seam")]
fn what_is_written_around_the_seam_is_noticed() {
    let world = World::new();
    world.create("a", "x");
    fs::write(world.path("a"), "y").unwrap();
    world.recorder.cut();
}

#[test]
fn after_the_cut_nothing_is_done_any_more() {
    let world = World::with(|_| {}, Plan { cut_at: Some(4), ..Plan::default() });
    let mut file = world.create("a", "x");
    disk::sync_dir(world.root.path()).unwrap();
    assert!(!world.recorder.is_off());
    file.sync_data().unwrap_err();
    assert!(world.recorder.is_off());
    file.write_all(b"y").unwrap_err();
    disk::remove_file(&world.path("a")).unwrap_err();
    assert_eq!((world.cut(), world.recorder.acts()), (set(["a=", "a=x", "a=0"]), 4));
}

#[test]
fn the_index_is_absent_or_as_it_is_or_as_it_was_when_synced() {
    let world = World::with(|root| fs::create_dir(root.join("sled")).unwrap(), Plan::default());
    let path = world.path("sled/db");
    fs::write(&path, "one").unwrap();
    File::adopt(path.clone(), fs::File::open(&path).unwrap()).sync_data().unwrap();
    fs::write(&path, "one two").unwrap();
    assert_eq!(world.cut(), set(["", "sled/db=one", "sled/db=one two"]));
}

#[test]
fn a_seed_leaves_the_same_each_time() {
    let world = World::new();
    for name in ["a", "b", "c"] {
        world.create(name, "some text that may be torn");
    }
    world.recorder.cut();
    for seed in 0..20 {
        assert_eq!(world.image(seed), world.image(seed));
    }
}

#[test]
fn a_pretended_sync_makes_nothing_durable() {
    let plan = Plan { lie: Some(Box::new(|act| matches!(act, Act::SyncDir { .. }))), ..Plan::default() };
    let world = World::with(|_| {}, plan);
    world.create("a", "x").sync_all().unwrap();
    disk::sync_dir(world.root.path()).unwrap();
    assert_eq!(world.recorder.syncs(), set(["content of a", "names of "]));
    assert_eq!(world.cut(), set(["", "a=x"]));
}
