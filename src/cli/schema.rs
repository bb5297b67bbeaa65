//! `batchd schema`: the JSON Schema of TOML specs.

use super::report::Printer;
use super::{Done, Exit};
use crate::spec;

pub(super) fn run(printer: &mut Printer<'_>) -> Done {
    printer.data(&format!("{:#}\n", spec::schema()))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::report::tests::batchd;

    #[test]
    fn it_is_json() {
        let printed = batchd(["schema"]);
        assert_eq!((printed.exit, printed.err.as_str()), (Exit::Done, ""));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&printed.out).unwrap(), spec::schema());
    }
}
