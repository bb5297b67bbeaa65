//! `batchd man`: the manual, a page for the program and one for each command, made from the help texts and what
//! stands here about files, environment, signals and exit codes.

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::args::{Args, ManArgs};
use super::report::Printer;
use super::{Done, Exit, Failure};

/// The name of the page about the program itself.
const PROGRAM: &str = "batchd";

/// Pages that have more to say than their help and the exit codes.
const DAEMON: [&str; 2] = [PROGRAM, "batchd-run"];

const SIGNALS: [(&str, &str); 3] = [
    (
        "SIGTERM, SIGINT",
        "Nothing more is sent, what is in flight may finish within the configuration's grace, and the daemon ends with 0. \
         A second one ends it at once; what was in flight then may be paid for twice.",
    ),
    (
        "SIGHUP",
        "The configuration and the keys are read again. What can change while the daemon runs does so at once; the log \
         names the rest, which needs a restart. A configuration with a mistake changes nothing.",
    ),
    ("SIGUSR1", "The log gets a report of what the daemon is doing."),
];

const FILES: [(&str, &str); 7] = [
    (
        "./batchd.toml, ~/.config/batchd/batchd.toml, /etc/batchd/batchd.toml",
        "The configuration: the first of them that there is, unless --config or BATCHD_CONFIG names another. \
         `batchd config --sample` prints one with every key.",
    ),
    (
        "ROOT/jobs/",
        "The watched folder: job specs are dropped here, and data that they name into its inputs/.",
    ),
    ("ROOT/jobs/rejected/", "Specs that were refused, each beside NAME.errors.txt with every problem."),
    (
        "ROOT/results/JOB/",
        "output.jsonl, errors.jsonl if a request failed for good, images/, and summary.json, which is written last.",
    ),
    ("ROOT/state/", "The daemon's own: the jobs with their journals, and the queue's index."),
    ("ROOT/batchd.sock", "The socket that the commands speak to, unless the configuration names another."),
    (
        "/etc/batchd/batchd.keys/",
        "The keys of the service: a file each, which the unit hands to the daemon as /run/credentials/batchd.service/key_NAME.",
    ),
];

const ENVIRONMENT: [(&str, &str); 4] = [
    ("BATCHD_CONFIG", "The configuration file, where --config is not given."),
    (
        "OPENAI_API_KEY",
        "The key to OpenAI, where the configuration says nothing else (api_key_env, api_key_file).",
    ),
    (
        "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY",
        "The proxies to go through, and where to go without one.",
    ),
    ("TMPDIR", "Where `batchd demo` makes its folder."),
];

pub(super) fn run(args: &ManArgs, printer: &mut Printer<'_>) -> Done {
    let pages = pages();
    if let Some(folder) = &args.out_dir {
        return write_all(&pages, folder, printer);
    }
    let wanted = [&[PROGRAM.to_owned()], &args.command[..]].concat().join("-");
    let Some(page) = pages.iter().find(|page| page.name == wanted) else {
        let message = format!("there is no command `{}`", args.command.join(" "));
        return Err(Failure::new(Exit::Usage, message).hint("`batchd --help` lists them"));
    };
    printer.data(&page.text)?;
    Ok(Exit::Done)
}

fn write_all(pages: &[Page], folder: &Path, printer: &mut Printer<'_>) -> Done {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| Failure::new(Exit::StateIo, format!("can't write `{path}`: {error}"))
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    for page in pages {
        let path = folder.join(format!("{}.1", page.name));
        fs::write(&path, &page.text).map_err(failed(&path))?;
    }
    printer.note(&format!("{} pages in {}", pages.len(), folder.display()));
    Ok(Exit::Done)
}

/// A page in section 1, without the section.
#[derive(Debug)]
struct Page {
    name: String,
    text: String,
}

fn pages() -> Vec<Page> {
    let mut program = Args::command().disable_help_subcommand(true);
    program.build();
    let mut pages = Vec::new();
    // A command before its own subcommands, which is the order in which the manual lists them.
    let mut waiting = vec![&program];
    while let Some(command) = waiting.pop() {
        pages.push(page(command));
        let mut below: Vec<_> = command.get_subcommands().filter(|command| !command.is_hide_set()).collect();
        below.reverse();
        waiting.append(&mut below);
    }
    pages
}

fn page(command: &clap::Command) -> Page {
    let name = command.get_display_name().unwrap_or(PROGRAM).to_owned();
    let man = Man::new(command.clone())
        .source(concat!("batchd ", env!("CARGO_PKG_VERSION")))
        .manual("batchd manual");
    let mut text = Vec::new();
    let written =
        man.render_title(&mut text)
            .and_then(|()| man.render_name_section(&mut text))
            .and_then(|()| man.render_synopsis_section(&mut text))
            .and_then(|()| man.render_description_section(&mut text))
            .and_then(|()| man.render_options_section(&mut text))
            .and_then(|()| {
                if command.has_subcommands() { man.render_subcommands_section(&mut text) } else { Ok(()) }
            })
            .and_then(|()| more(&name).to_writer(&mut text));
    written.expect("memory can be written");
    Page { name, text: String::from_utf8_lossy(&text).into_owned() }
}

/// What the help doesn't say.
fn more(name: &str) -> Roff {
    let mut roff = Roff::new();
    if DAEMON.contains(&name) {
        list(&mut roff, "SIGNALS", SIGNALS);
        list(&mut roff, "FILES", FILES);
        list(&mut roff, "ENVIRONMENT", ENVIRONMENT);
    }
    let codes = Exit::ALL.map(|exit| (exit.code().to_string(), exit.meaning()));
    list(&mut roff, "EXIT STATUS", codes.iter().map(|(code, meaning)| (code.as_str(), *meaning)));
    if name != PROGRAM {
        roff.control("SH", ["SEE ALSO"]);
        roff.text([bold(PROGRAM), roman("(1)")]);
    }
    roff
}

fn list<'t>(roff: &mut Roff, heading: &str, items: impl IntoIterator<Item = (&'t str, &'t str)>) {
    roff.control("SH", [heading]);
    for (term, words) in items {
        roff.control("TP", []);
        roff.text([bold(term)]);
        roff.text([roman(words)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::report::tests::batchd;

    #[test]
    fn every_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let out_dir = folder.path().join("man");
        let printed = batchd([Path::new("man"), Path::new("--out-dir"), &out_dir]);
        assert_eq!((printed.exit, printed.out.as_str()), (Exit::Done, ""));
        for command in Args::command().get_subcommands() {
            let name = command.get_name();
            let page = fs::read_to_string(out_dir.join(format!("batchd-{name}.1"))).unwrap();
            assert!(page.contains(&format!(".TH batchd-{name} 1 ")), "{name}: {page}");
            let one = batchd(["man", name]);
            assert_eq!((one.exit, one.out), (Exit::Done, page), "{name}");
        }
        assert!(out_dir.join("batchd-files-get.1").exists());
        assert!(batchd(["man", "files", "get"]).out.contains("\nbatchd\\-files\\-get \\- Download"));
        assert!(!out_dir.join("batchd-help.1").exists());
    }

    #[test]
    fn page_of_the_program_says_what_its_help_does_not() {
        let printed = batchd(["man"]);
        assert_eq!((printed.exit, printed.err.as_str()), (Exit::Done, ""));
        let sections: Vec<&str> = printed.out.lines().filter_map(|line| line.strip_prefix(".SH ")).collect();
        let more = ["SIGNALS", "FILES", "ENVIRONMENT", "\"EXIT STATUS\""];
        let usual = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "SUBCOMMANDS"];
        assert_eq!(sections, [&usual[..], &more[..]].concat());
        for exit in Exit::ALL {
            assert!(printed.out.contains(&format!("\n\\fB{}\\fR\n", exit.code())), "{exit:?}");
        }
        assert!(batchd(["man", "run"]).out.contains("\\fBSIGHUP\\fR"));
        assert!(!batchd(["man", "list"]).out.contains("SIGHUP"));
    }

    #[test]
    fn command_that_there_is_not_has_no_page() {
        let printed = batchd(["man", "files", "got"]);
        assert_eq!(printed.exit, Exit::Usage);
        assert_eq!(
            printed.err,
            "error: there is no command `files got`\n  hint: `batchd --help` lists them\n"
        );
        assert_eq!(batchd(["man", "--out-dir", "x", "run"]).exit, Exit::Usage);
    }
}
