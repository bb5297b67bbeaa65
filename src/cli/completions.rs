//! `batchd completions SHELL`: what makes the shell complete batchd's commands and options.

use clap::CommandFactory;

use super::args::{Args, CompletionsArgs};
use super::report::Printer;
use super::{Done, Exit};

pub(super) fn run(args: CompletionsArgs, printer: &mut Printer<'_>) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "batchd", &mut script);
    printer.data(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::report::tests::batchd;

    #[test]
    fn every_shell_completes_every_command() {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let printed = batchd(["completions", shell]);
            assert_eq!((printed.exit, printed.err.as_str()), (Exit::Done, ""), "{shell}");
            for command in Args::command().get_subcommands() {
                assert!(printed.out.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
        }
        assert_eq!(batchd(["completions", "tcsh"]).exit, Exit::Usage);
    }
}
