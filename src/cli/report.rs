//! The only printer (P8): data on stdout, all else on stderr.
//!
//! Text from outside is made harmless by [`printable`] before it reaches a terminal; JSON escapes by its grammar.

use std::io::{self, ErrorKind, IsTerminal, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

use super::{Done, Exit, Failure};
use crate::control::JobReport;
use crate::diag::{Report, printable};

/// Where a command prints.
pub(super) struct Printer<'a> {
    out: Box<dyn Write + Send + 'a>,
    err: Box<dyn Write + 'a>,
    /// Colour and moving things are for people.
    pub(super) err_is_terminal: bool,
    out_is_terminal: bool,
}

impl Printer<'static> {
    pub(super) fn stdio() -> Self {
        let (out, err) = (io::stdout(), io::stderr());
        Self {
            out_is_terminal: out.is_terminal(),
            err_is_terminal: err.is_terminal(),
            out: Box::new(out),
            err: Box::new(err),
        }
    }
}

impl Printer<'_> {
    /// Prints data.
    pub(super) fn data(&mut self, text: &str) -> Result<(), Failure> {
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(Failure::Output)
    }

    /// Where data goes that comes in pieces. Whoever fills it flushes it.
    pub(super) fn sink(&mut self) -> &mut (dyn Write + Send) {
        &mut self.out
    }

    /// Prints data as JSON.
    pub(super) fn json(&mut self, data: &impl Serialize) -> Result<(), Failure> {
        let mut text = serde_json::to_string_pretty(data).expect("our own types serialise");
        text.push('\n');
        self.data(&text)
    }

    /// Prints data as one line of JSON.
    pub(super) fn json_line(&mut self, data: &impl Serialize) -> Result<(), Failure> {
        let mut text = serde_json::to_string(data).expect("our own types serialise");
        text.push('\n');
        self.data(&text)
    }

    /// Prints a table, its cells made harmless.
    pub(super) fn table<const N: usize>(
        &mut self,
        header: [&str; N],
        rows: impl IntoIterator<Item = [String; N]>,
    ) -> Result<(), Failure> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header);
        for row in rows {
            table.add_row(row.map(|cell| printable(&cell)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.data(&format!("{}\n", table.trim_fmt()))
    }

    /// Prints one line a fact; what there is none of is left out.
    pub(super) fn facts<const N: usize>(
        &mut self,
        facts: [(&str, Option<String>); N],
    ) -> Result<(), Failure> {
        let width = facts.iter().map(|(label, _)| label.len()).max().unwrap_or_default();
        let line = |(label, value): (&str, Option<String>)| {
            value.map(|value| format!("{label:<width$}  {}\n", printable(&value)))
        };
        self.data(&facts.into_iter().filter_map(line).collect::<String>())
    }

    /// Says something about what goes on.
    pub(super) fn note(&mut self, text: &str) {
        self.say(&format!("{}\n", printable(text)));
    }

    /// Puts a question, behind which the answer is written.
    pub(super) fn ask(&mut self, question: &str) {
        self.say(&format!("{} ", printable(question)));
    }

    /// Prints what was found in a file.
    pub(super) fn findings(&mut self, report: &Report) {
        self.say(&report.to_string());
    }

    /// Prints a report that the daemon wrote, line by line.
    pub(super) fn rejection(&mut self, text: &str) {
        for line in text.lines() {
            self.note(line);
        }
    }

    /// Says why a command ended early.
    pub(super) fn failure(&mut self, failure: Failure) -> Exit {
        match failure {
            Failure::Findings(exit, report) => {
                self.findings(&report);
                exit
            }
            Failure::Message { exit, message, hint } => {
                // What a spec was rejected for may be a report of many lines.
                self.rejection(&format!("error: {message}"));
                if let Some(hint) = hint {
                    self.note(&format!("  hint: {hint}"));
                }
                exit
            }
            // Whoever read our output has seen enough, as in `batchd list | head`.
            Failure::Output(error) if error.kind() == ErrorKind::BrokenPipe => Exit::Done,
            Failure::Output(error) => {
                self.note(&format!("error: can't write to stdout: {error}"));
                Exit::StateIo
            }
        }
    }

    /// Prints what the parser of the command line has to say: help, a version, or what is wrong.
    pub(super) fn usage(&mut self, error: &clap::Error) -> Done {
        let text = error.render();
        let colour = |wanted: bool| if wanted { text.ansi().to_string() } else { text.to_string() };
        if error.use_stderr() {
            let text = colour(self.err_is_terminal);
            self.say(&text);
            Ok(Exit::Usage)
        } else {
            let text = colour(self.out_is_terminal);
            self.data(&text)?;
            Ok(Exit::Done)
        }
    }

    /// If stderr is gone there is nobody left to tell.
    fn say(&mut self, text: &str) {
        self.err.write_all(text.as_bytes()).and_then(|()| self.err.flush()).unwrap_or_default();
    }
}

/// The job's status, and in brackets why if there is a reason.
pub(super) fn status(job: &JobReport) -> String {
    match &job.reason {
        Some(reason) => format!("{} ({reason})", job.status),
        None => job.status.clone(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::run_with;

    /// What a command printed and how it ended.
    #[derive(Debug, PartialEq, Eq)]
    pub(in crate::cli) struct Printed {
        pub(in crate::cli) exit: Exit,
        pub(in crate::cli) out: String,
        pub(in crate::cli) err: String,
    }

    /// Calls `act` with a printer that fills two buffers.
    pub(in crate::cli) fn printed(act: impl FnOnce(&mut Printer<'_>) -> Exit) -> Printed {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = act(&mut Printer {
            out: Box::new(&mut out),
            err: Box::new(&mut err),
            err_is_terminal: false,
            out_is_terminal: false,
        });
        let [out, err] = [out, err].map(|bytes| String::from_utf8(bytes).unwrap());
        Printed { exit, out, err }
    }

    /// Runs `batchd` with these arguments.
    pub(in crate::cli) fn batchd<A: Into<OsString>>(args: impl IntoIterator<Item = A>) -> Printed {
        let args: Vec<OsString> =
            std::iter::once("batchd".into()).chain(args.into_iter().map(Into::into)).collect();
        printed(|printer| run_with(args, printer))
    }

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn reader_that_went_away_ends_a_command_quietly() {
        for (kind, exit, said) in [
            (ErrorKind::BrokenPipe, Exit::Done, ""),
            (ErrorKind::StorageFull, Exit::StateIo, "error: can't write to stdout: no storage space\n"),
        ] {
            let mut err = Vec::new();
            let mut printer = Printer {
                out: Box::new(Broken(kind)),
                err: Box::new(&mut err),
                err_is_terminal: false,
                out_is_terminal: false,
            };
            let failure = printer.data("x").unwrap_err();
            assert_eq!(printer.failure(failure), exit);
            drop(printer);
            assert_eq!(String::from_utf8(err).unwrap(), said);
        }
    }

    #[test]
    fn tables_and_notes_can_not_drive_a_terminal() {
        let printed = printed(|printer| {
            printer.table(["NAME"], [["a\u{1b}[31m\nb".to_owned()]]).unwrap();
            printer.note("x\u{202e}\ny");
            Exit::Done
        });
        assert_eq!(printed.out, "NAME\na\\u{1b}[31m\\nb\n");
        assert_eq!(printed.err, "x\\u{202e}\\ny\n");
    }

    #[test]
    fn usage_errors_go_to_stderr_and_help_to_stdout() {
        let wrong = batchd(["lits"]);
        assert_eq!((wrong.exit, wrong.out.as_str()), (Exit::Usage, ""));
        assert!(wrong.err.contains("a similar subcommand exists: 'list'"), "{}", wrong.err);
        let help = batchd(["--help"]);
        assert_eq!((help.exit, help.err.as_str()), (Exit::Done, ""));
        insta::assert_snapshot!(help.out, @r#"
        Runs large batches of requests against OpenAI-compatible servers: drop a file, get answers, pay once

        Usage: batchd [OPTIONS] <COMMAND>

        Commands:
          run          Run the daemon in the foreground
          check        Validate job specs and say what they would do; nothing is sent
          submit       Place job specs into the watched folder; needs no daemon
          list         Show the jobs of the running daemon
          show         Show one job of the running daemon
          watch        Follow a job until it is done, or all that are at work
          cancel       End a job: what is in flight may finish, the rest is recorded as cancelled
          pause        Send nothing more for a job until it is resumed
          resume       End a job's pause, and try again now what a refused key or a used-up quota stopped
          retry        Try a job's waiting requests again now, and go on with a job that is paused or held
          schedule     Look at the schedules of the running daemon, and run one now
          rebuild      Rebuild the queue from the job folders, while no daemon runs
          prepare      Make a training file for a fine-tune of pairs of prompts and completions, or check
                       one
          models       Show the models of a provider, or one of them
          files        Look at, upload, download and delete files at a provider
          simulate     Be a stand-in OpenAI-compatible server, to rehearse a job without paying
          demo         Run an example of every kind of job against a stand-in server: no key, no network
          config       Print the configuration in force as TOML, or a sample with every key
          schema       Print the JSON Schema of TOML specs, for editors
          completions  Print what makes a shell complete batchd's commands
          man          Print a page of the manual, or write all pages into a folder
          help         Print this message or the help of the given subcommand(s)

        Options:
              --config <FILE>  The configuration file [default: $BATCHD_CONFIG, else batchd.toml here, in
                               ~/.config/batchd or in /etc/batchd]
          -h, --help           Print help
          -V, --version        Print version

        Exit codes: 0 done, 1 some requests failed, 2 usage, 65 a spec was rejected, 69 daemon or provider
        not reachable, 70 internal, 74 state I/O, 75 another daemon holds the root, 78 bad config, 130
        interrupted.
        "#);
    }

    #[test]
    fn every_exit_has_the_number_it_is_promised_to_have() {
        let exits = [
            (Exit::Done, 0),
            (Exit::SomeFailed, 1),
            (Exit::Usage, 2),
            (Exit::Rejected, 65),
            (Exit::Unreachable, 69),
            (Exit::Internal, 70),
            (Exit::StateIo, 74),
            (Exit::AlreadyRunning, 75),
            (Exit::BadConfig, 78),
            (Exit::Interrupted, 130),
        ];
        for (exit, code) in exits {
            assert_eq!(exit.code(), code);
        }
    }
}
