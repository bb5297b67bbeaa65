//! Every malformed file is refused whole, with its place and what to do, and harms nothing beside it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use serde_json::Value;

use crate::world::{Output, Setup, World, chat_line, chat_lines, custom_ids, eventually, names};

/// Lies beside the root, where no spec may reach.
const SECRET: &str = "the-neighbours-secret";

/// A refused file: its name, its content, where its first error is and what that says.
type Bad<'a> = (&'a str, Vec<u8>, &'a str, &'a str);

/// `batchd check NAME` as somebody in the jobs folder would ask.
fn check(world: &World, name: &str) -> Output {
    let mut command = world.command(&["check", name]);
    command.current_dir(world.jobs_dir());
    world.run(command)
}

/// Drops the files beside a good one, runs, and holds every report against what `check` had said before.
fn refuses(world: &World, table: &[Bad<'_>]) {
    for (name, content, ..) in table {
        world.drop(name, content);
    }
    let checked: Vec<Output> = table.iter().map(|(name, ..)| check(world, name)).collect();
    assert_eq!(world.ledger().requests, 0, "check sends nothing");
    world.drop("good.jsonl", chat_lines(2));
    world.run_to_success();

    let mut wrong = Vec::new();
    for ((name, content, place, says), checked) in table.iter().zip(checked) {
        let report = world.report(name).unwrap_or_default();
        if !report.starts_with(&format!("{place}: error: ")) || !report.contains(says) {
            wrong.push(format!("{name} at {place} with `{says}`, found:\n{report}"));
        }
        assert_eq!((checked.code, &checked.stderr), (Some(65), &report), "{name}");
        let kept = fs::read(world.jobs_dir().join("rejected").join(name)).unwrap();
        assert_eq!(&kept, content, "{name} is kept as it was");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(world.results("good").outcome(), ("completed".to_owned(), 2, 2, 0));
    assert_eq!(names(&world.path("root/results")), ["good"]);
    assert_eq!(world.ledger().requests, 2, "no request of a refused file was sent");
    assert_eq!(names(&world.jobs_dir()), ["inputs", "rejected"]);
}

#[test]
fn malformed_jsonl_is_refused_whole_with_its_place_and_what_to_do() {
    let world = World::new();
    let good = chat_line("a", "x") + "\n";
    let after_good = |line: &str| format!("{good}{line}\n").into_bytes();
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from));
        good.replace(from, to).into_bytes()
    };
    let pretty = serde_json::from_str::<Value>(&good).unwrap();
    let table: Vec<Bad<'_>> = vec![
        (
            "invalid.jsonl",
            after_good(r#"{"model":"m","prompt":nonsense}"#),
            "invalid.jsonl:2:24",
            "invalid JSON",
        ),
        (
            "cut-off.jsonl",
            format!("{good}{{\"model\":\"m\",\"pro").into_bytes(),
            "cut-off.jsonl:2:17",
            "the last line is unfinished",
        ),
        ("pretty.jsonl", serde_json::to_vec_pretty(&pretty).unwrap(), "pretty.jsonl:1:1", "jq -c"),
        ("array.jsonl", b"[{}]\n".to_vec(), "array.jsonl:1:1", "jq -c"),
        (
            "twice.jsonl",
            after_good(&(chat_line("b", "x") + "\n\n" + &chat_line("a", "y"))),
            "twice.jsonl:4:14",
            "`a`, first used on line 1",
        ),
        (
            "stream.jsonl",
            changed(r#""model":"m""#, r#""model":"m","stream":true"#),
            "stream.jsonl:1:92",
            "to have batchd stream, write `stream = true` at the top",
        ),
        (
            "url.jsonl",
            changed("/v1/chat/completions", "/v1/chat/completion"),
            "url.jsonl:1:40",
            "`/v1/chat/completions`",
        ),
        ("fine.jsonl", changed("/v1/chat/completions", "/v1/fine_tuning/jobs"), "fine.jsonl:1:40", "TOML"),
        ("method.jsonl", changed("POST", "GET"), "method.jsonl:1:27", "expected `POST`"),
        (
            "body.jsonl",
            b"{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/completions\",\"body\":[]}\n".to_vec(),
            "body.jsonl:1:65",
            "expected an object",
        ),
        ("no-id.jsonl", changed("\"custom_id\":\"a\",", ""), "no-id.jsonl:1:1", "custom_id"),
        ("empty.jsonl", Vec::new(), "empty.jsonl", "expected one JSON object a line"),
        ("blank.jsonl", b"\n \r\n".to_vec(), "blank.jsonl", "expected one JSON object a line"),
        ("shape.jsonl", b"{\"question\":\"why?\"}\n".to_vec(), "shape.jsonl:1:1", "expected a batch line"),
    ];
    refuses(&world, &table);
}

#[test]
fn lines_that_are_no_text_or_mean_two_things_are_refused_with_their_place() {
    let world = World::with(&Setup { intake: "max_line = \"1KiB\"", ..Setup::default() });
    let good = chat_line("a", "x") + "\n";
    let after_good = |line: &str| format!("{good}{line}\n").into_bytes();
    let changed = |from: &str, to: &str| good.replace(from, to).into_bytes();
    let mut broken_utf8 = after_good(r#"{"prompt":"?"}"#);
    let at = broken_utf8.iter().rposition(|byte| *byte == b'?').unwrap();
    broken_utf8[at] = 0xff;
    let table: Vec<Bad<'_>> = vec![
        ("utf-8.jsonl", broken_utf8, "utf-8.jsonl:2:12", "save the file as UTF-8"),
        ("utf-16.jsonl", b"\xff\xfe{\0}\0".to_vec(), "utf-16.jsonl:1:1", "UTF-16"),
        ("nul.jsonl", after_good("{\"prompt\":\"\0\"}"), "nul.jsonl:2:12", "a NUL byte"),
        (
            "key-twice.jsonl",
            changed(r#""custom_id":"a""#, r#""custom_id":"a","custom_id":"b""#),
            "key-twice.jsonl:1:30",
            "duplicate key `custom_id`",
        ),
        (
            "deep.jsonl",
            changed(r#""model":"m""#, r#""model":"m","model":"n""#),
            "deep.jsonl:1:91",
            "duplicate key `model`",
        ),
        (
            "long.jsonl",
            after_good(&chat_line("b", &"x".repeat(1024))),
            "long.jsonl:2",
            "`max_line` in `[intake]`",
        ),
    ];
    refuses(&world, &table);
}

#[test]
fn malformed_toml_is_refused_whole_with_its_place_and_what_to_do() {
    let world = World::new();
    let inline = |line: &str| {
        format!("kind = 'completions'\nmodel = 'm'\n{line}\n[[requests]]\nprompt = 'x'\n").into_bytes()
    };
    let table: Vec<Bad<'_>> = vec![
        ("syntax.toml", b"kind = \n".to_vec(), "syntax.toml:1:8", "invalid TOML"),
        ("key.toml", inline("priorty = 3"), "key.toml:3:1", "did you mean `priority`?"),
        (
            "types.toml",
            inline("priority = 'high'\nname = 3"),
            "types.toml:3:12",
            "types.toml:4:8: error: `name` is an integer, expected a string",
        ),
        ("range.toml", inline("priority = 12"), "range.toml:3:12", "expected an integer from 0 to 9"),
        (
            "strict.toml",
            inline("strict = true\n[parameters]\ntemperature = 3"),
            "strict.toml:6",
            "expected a number from 0 to 2",
        ),
        ("kind.toml", b"kind = 'chatt'\n".to_vec(), "kind.toml:1:8", "did you mean `chat`?"),
        ("name.toml", inline("name = 'a/b'"), "name.toml:3:8", "`a/b`"),
        ("nobody.toml", inline("provider = 'nobody'"), "nobody.toml:3:12", "the config has `sim`"),
        (
            "cron.toml",
            inline("[schedule]\ncron = '0 25 * * *'"),
            "cron.toml:4:8",
            "bad cron expression `0 25 * * *`",
        ),
        ("nul.toml", b"kind = 'chat\0'\n".to_vec(), "nul.toml:1:13", "invalid TOML"),
        ("utf-8.toml", b"kind = 'chat\xff'\n".to_vec(), "utf-8.toml:1:13", "save the file as UTF-8"),
        ("empty.toml", Vec::new(), "empty.toml", "missing `kind`"),
    ];
    refuses(&world, &table);
}

#[test]
fn data_that_is_missing_malformed_or_out_of_bounds_refuses_its_spec() {
    let world = World::new();
    fs::write(world.path("secret.txt"), format!("{SECRET}\n")).unwrap();
    symlink(world.path("secret.txt"), world.jobs_dir().join("inputs/link.txt")).unwrap();
    mknodat(CWD, world.jobs_dir().join("inputs/pipe.txt"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .unwrap();
    world.input("rows.csv", "id,text\n1,one\n2,two\n");
    world.input("ragged.csv", "id,text\n1,one\n2,two,three\n");
    world.input("rows.jsonl", "{\"text\":\"one\"}\n{\"txt\":\"two\"}\n");
    world.input("empty.txt", "\n");
    let rows = |file: &str, prompt: &str| {
        format!("kind = 'completions'\nmodel = 'm'\n[input]\nfile = '{file}'\nprompt = '{prompt}'\n")
            .into_bytes()
    };
    let outside = world.path("secret.txt").display().to_string();
    let table: Vec<Bad<'_>> = vec![
        ("missing.toml", rows("inputs/none.csv", "x"), "missing.toml:4:8", "`inputs/none.csv`"),
        ("no-match.toml", rows("inputs/none-*.csv", "x"), "no-match.toml:4:8", "`inputs/none-*.csv`"),
        ("no-rows.toml", rows("inputs/empty.txt", "x"), "inputs/empty.txt", "row"),
        ("up.toml", rows("../../secret.txt", "x"), "up.toml:4:8", "leads out of its folder"),
        ("absolute.toml", rows(&outside, "x"), "absolute.toml:4:8", "`[intake] input_dirs`"),
        ("link.toml", rows("inputs/link.txt", "x"), "link.toml:4:8", "symbolic link"),
        ("pipe.toml", rows("inputs/pipe.txt", "x"), "pipe.toml:4:8", "regular file"),
        (
            "variable.toml",
            rows("inputs/rows.csv", "{{ txt }}"),
            "inputs/rows.csv:2",
            "unknown variable `txt`",
        ),
        (
            "one-row.toml",
            rows("inputs/rows.jsonl", "{{ text }}"),
            "inputs/rows.jsonl:2",
            "unknown variable `text`",
        ),
        ("unclosed.toml", rows("inputs/rows.csv", "{{ text"), "unclosed.toml:5:10", "unclosed `{{`"),
        ("ragged.toml", rows("inputs/ragged.csv", "x"), "inputs/ragged.csv:3", "expected 2"),
        (
            "same-id.toml",
            [rows("inputs/rows.csv", "x"), b"custom_id = 'same'\n".to_vec()].concat(),
            "inputs/rows.csv:3",
            "duplicate custom_id `same`",
        ),
    ];
    refuses(&world, &table);
    assert_eq!(world.files_with("root", SECRET), Vec::<String>::new());
}

#[test]
fn malformed_folder_is_refused_whole_and_keeps_its_data() {
    let world = World::new();
    let folder = world.path("nightly");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("data.csv"), "text\none\n").unwrap();
    let spec = "kind = 'completions'\nmodel = 'm'\n[input]\nfile = 'data.csv'\nprompt = '{{ txt }}'\n";
    fs::write(folder.join("job.toml"), spec).unwrap();
    fs::rename(&folder, world.jobs_dir().join("nightly")).unwrap();
    let checked = check(&world, "nightly");
    world.run_to_success();
    let report = world.report("nightly").unwrap();
    assert!(report.contains("data.csv:2: error: unknown variable `txt`"), "{report}");
    assert_eq!((checked.code, checked.stderr), (Some(65), report));
    assert_eq!(names(&world.jobs_dir().join("rejected/nightly")), ["data.csv", "job.toml"]);
    assert_eq!(world.ledger().requests, 0);
}

#[test]
fn corrected_file_can_be_dropped_again_under_its_name() {
    let world = World::new();
    let daemon = world.start();
    world.drop("job.jsonl", "{}\n");
    eventually("the report", || world.report("job.jsonl"));
    world.drop("job.jsonl", "[]\n");
    eventually("the second report", || world.report("job-2.jsonl"));
    world.drop("job.jsonl", chat_lines(2));
    world.wait_for_status("job", "completed");
    assert_eq!(daemon.stop().code, Some(0));
    let rejected = names(&world.jobs_dir().join("rejected"));
    assert_eq!(rejected, ["job-2.jsonl", "job-2.jsonl.errors.txt", "job.jsonl", "job.jsonl.errors.txt"]);
}

#[test]
fn check_says_what_a_spec_would_do_and_prints_json() {
    let world = World::new();
    world.input("rows.csv", "text\none\ntwo\n");
    world.drop(
        "good.toml",
        "kind = 'completions'\nname = 'news'\nmodel = 'm'\n[input]\nfile = 'inputs/rows.csv'\nprompt = '{{ text }}'\n",
    );
    world.drop("bad.jsonl", "{}\n");
    let output = check(&world, "good.toml");
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""));
    assert_eq!(output.stdout, "good.toml: job `news` (completions), 2 requests\n          2 to sim/m\n");

    let mut command = world.command(&["check", "--json", "good.toml", "bad.jsonl"]);
    command.current_dir(world.jobs_dir());
    let output = world.run(command);
    assert_eq!(output.code, Some(65));
    let verdicts: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((&verdicts[0]["accepted"], &verdicts[0]["requests"]), (&true.into(), &2.into()));
    assert_eq!((&verdicts[1]["accepted"], &verdicts[1]["errors"]), (&false.into(), &1.into()));
    let finding = &verdicts[1]["findings"][0];
    assert_eq!(
        (&finding["file"], &finding["line"], &finding["column"]),
        (&"bad.jsonl".into(), &1.into(), &1.into())
    );
    assert_eq!(names(&world.jobs_dir()), ["bad.jsonl", "good.toml", "inputs"], "nothing was moved");
}

#[test]
fn report_names_the_first_twenty_problems_and_counts_the_others() {
    let world = World::new();
    world.drop("many.jsonl", "{\"question\":\"why?\"}\n".repeat(25));
    world.run_to_success();
    let report = world.report("many.jsonl").unwrap();
    let errors: Vec<&str> = report.lines().filter(|line| line.contains(": error: ")).collect();
    assert_eq!(errors.len(), 20);
    assert!(errors[19].starts_with("many.jsonl:20:1: error: "), "{report}");
    assert!(report.ends_with("\nand 5 more errors\n"), "{report}");
}

#[test]
fn what_is_no_regular_file_is_moved_aside_and_never_read() {
    let world = World::new();
    fs::write(world.path("secret.jsonl"), format!("{SECRET}\n")).unwrap();
    let jobs = world.jobs_dir();
    let node = |name: &str, kind: FileType, device: u64| {
        mknodat(CWD, jobs.join(name), kind, Mode::RUSR | Mode::WUSR, device)
    };
    symlink(world.path("secret.jsonl"), jobs.join("link.jsonl")).unwrap();
    symlink("nowhere", jobs.join("dangling.toml")).unwrap();
    node("pipe.jsonl", FileType::Fifo, 0).unwrap();
    let listener = UnixListener::bind(jobs.join("socket.toml")).unwrap();
    let mut refused = vec!["link.jsonl", "dangling.toml", "pipe.jsonl", "socket.toml"];
    // Only root may make one: /dev/zero, which a reader would never see the end of.
    if node("zero.jsonl", FileType::CharacterDevice, makedev(1, 5)).is_ok() {
        refused.push("zero.jsonl");
    }
    world.drop("good.jsonl", chat_lines(2));
    world.run_to_success();

    let rejected = jobs.join("rejected");
    for name in &refused {
        let report = world.report(name).unwrap_or_else(|| panic!("{name} has no report"));
        assert!(report.contains(": error: "), "{name}: {report}");
        assert!(fs::symlink_metadata(rejected.join(name)).is_ok(), "{name} is kept");
    }
    drop(listener);
    assert_eq!(names(&jobs), ["inputs", "rejected"]);
    assert_eq!(custom_ids(&world.results("good").output()), ["r-0", "r-1"]);
    assert_eq!(world.ledger().requests, 2);
    assert_eq!(world.files_with("root", SECRET), Vec::<String>::new());
}

#[test]
fn names_that_can_not_be_shown_are_refused_under_names_that_can() {
    let world = World::new();
    let table: [(&[u8], &str); 2] =
        [(b"caf\xe9.jsonl", "caf%E9.jsonl"), (b"two\nlines.jsonl", "two%0Alines.jsonl")];
    for (name, _) in table {
        fs::write(world.jobs_dir().join(Path::new(OsStr::from_bytes(name))), chat_lines(1)).unwrap();
    }
    world.drop("good.jsonl", chat_lines(2));
    world.run_to_success();
    for (_, shown) in table {
        let report = world.report(shown).unwrap_or_else(|| panic!("{shown} has no report"));
        assert!(report.starts_with(shown), "{report}");
        assert!(report.contains("plain names"), "it says what to do: {report}");
    }
    assert_eq!(names(&world.jobs_dir()), ["inputs", "rejected"]);
    assert_eq!(world.ledger().requests, 2);
}

#[test]
fn unfinished_names_and_what_is_no_spec_by_its_name_are_left_alone() {
    let world = World::new();
    let left_alone = [
        ".hidden.jsonl",
        "a.jsonl.tmp",
        "b.jsonl.part",
        "c.jsonl.partial",
        "d.jsonl.swp",
        "e.jsonl~",
        "notes.md",
    ];
    for name in left_alone {
        world.drop(name, chat_lines(1));
    }
    world.drop("good.jsonl", chat_lines(2));
    world.run_to_success();
    let left = names(&world.jobs_dir());
    for name in left_alone {
        assert!(left.contains(&name.to_owned()), "{name}: {left:?}");
    }
    assert_eq!(world.ledger().requests, 2);
}

#[test]
fn file_that_still_grows_is_taken_when_it_rests_and_whole() {
    // Longer than a busy machine keeps this test from writing its next line.
    let world = World::with(&Setup { settle: "1s", ..Setup::default() });
    let daemon = world.start();
    let path = world.jobs_dir().join("grows.jsonl");
    let text = chat_lines(30);
    let (first, rest) = text.split_at(text.len() / 2);
    fs::write(&path, first).unwrap();
    // Every line is a change: it rests only after the last.
    for line in rest.split_inclusive('\n') {
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut file, line.as_bytes()).unwrap();
    }
    world.wait_for_status("grows", "completed");
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(world.results("grows").outcome(), ("completed".to_owned(), 30, 30, 0));
}

#[test]
fn parameters_that_the_api_would_refuse_are_warnings_and_with_strict_errors() {
    let line = chat_line("a", "x").replace(r#""model":"m""#, r#""model":"m","temperature":3"#);
    let world = World::new();
    world.drop("warm.jsonl", &line);
    let checked = check(&world, "warm.jsonl");
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert!(checked.stderr.starts_with("warm.jsonl:1:") && checked.stderr.contains("warning"), "{checked:?}");
    assert_eq!(world.run_until_idle().code, Some(1), "the server refuses it");
    assert_eq!(world.ledger().requests, 1);

    let strict = World::with(&Setup { provider: "strict = true".to_owned(), ..Setup::default() });
    strict.drop("warm.jsonl", &line);
    let checked = check(&strict, "warm.jsonl");
    assert_eq!(checked.code, Some(65), "{checked:?}");
    strict.run_to_success();
    assert_eq!(strict.report("warm.jsonl"), Some(checked.stderr));
    assert_eq!(strict.ledger().requests, 0);
}
