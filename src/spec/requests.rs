//! The requests that a TOML spec stands for: made of rows, read from lines, or written out in it.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use crate::diag::{Diagnostic, Place, Report};
use crate::domain::{Endpoint, Kind};
use crate::reading::json;
use crate::reading::lines::Hashing;
use crate::reading::objects::Visited;
use crate::reading::problem::{Spot, Syntax};
use crate::spec::document::{Document, quoted};
use crate::spec::files::{Files, Found};
use crate::spec::ids::Visit;
use crate::spec::line::{self, Rules};
use crate::spec::name;
use crate::spec::rows::{self, DataForm, Row};
use crate::spec::schema::Spec;
use crate::spec::template::{Failed, TemplateId};
use crate::spec::work::{Content, Inline, Piece, Work};

/// One request as it was made.
#[derive(Clone, Copy)]
pub(super) struct Rendered<'r> {
    /// From 1, over all files.
    pub(super) ordinal: u32,
    pub(super) custom_id: &'r str,
    pub(super) endpoint: Endpoint,
    pub(super) body: &'r str,
    /// Where a person finds what it was made of.
    pub(super) spot: Spot<'r>,
}

/// Takes every request of a job.
pub(super) type EachRequest<'v> = &'v mut dyn FnMut(Rendered<'_>, &mut Report);

/// A spec with its data files, which can be gone over more than once.
pub(super) struct Requests<'j> {
    pub(super) spec: &'j Spec<'j>,
    pub(super) document: &'j Document<'j>,
    pub(super) files: Files,
    pub(super) found: Vec<(Found, DataForm)>,
    pub(super) max_line: u64,
}

impl Requests<'_> {
    /// Calls `visit` for every request that can be made, and reports what can't.
    pub(super) fn each(
        &self,
        mut hasher: Option<&mut blake3::Hasher>,
        report: &mut Report,
        visit: EachRequest<'_>,
    ) {
        let endpoint = self.spec.kind.endpoint();
        if let (Work::Inline(requests), Some(endpoint)) = (&self.spec.work, endpoint) {
            for (number, request) in requests.iter().enumerate() {
                self.inline(number, request, endpoint, report, visit);
            }
            return;
        }
        let mut unused = blake3::Hasher::new();
        let mut state = Rows::new(self.spec);
        for (found, form) in &self.found {
            let file = match self.files.open(found) {
                Ok(file) => file,
                Err(refused) => {
                    let mut error = Diagnostic::error(&found.display, 0, 0, refused.message);
                    error.hint = refused.hint;
                    report.push(error);
                    continue;
                }
            };
            let hasher = hasher.as_deref_mut().unwrap_or(&mut unused);
            let begun = written(&file);
            let input = Hashing { input: &file, hasher };
            let before = (state.ordinal, report.errors());
            state.lines_before = state.lines_before.saturating_add(std::mem::take(&mut state.line));
            state.ending = name::ending(&found.display);
            rows::each(*form, input, (&found.display, self.max_line), report, &mut |row, line, report| {
                state.row(row, Spot { file: &found.display, line, text: None }, report, visit)
            });
            if begun.is_none() || begun != written(&file) {
                let error =
                    Diagnostic::error(&found.display, 0, 0, "the file was written to while it was read");
                report.push(error.hint("drop the spec once its data is whole"));
            }
            if (state.ordinal, report.errors()) == before {
                let error = Diagnostic::error(&found.display, 0, 0, "the file has no rows");
                report.push(error.hint("an empty file is more often a mistake than a job"));
            }
            if state.hopeless {
                return;
            }
        }
    }

    fn inline(
        &self,
        number: usize,
        request: &Inline,
        endpoint: Endpoint,
        report: &mut Report,
        visit: EachRequest<'_>,
    ) {
        let ordinal = u32::try_from(number + 1).unwrap_or(u32::MAX);
        let own: Vec<(&str, &str)> =
            request.members.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let body = format!("{{{}}}", merged(self.spec, &own));
        let default = || format!("request-{ordinal}");
        let custom_id = request.custom_id.clone().unwrap_or_else(default);
        let spot = Spot { file: self.document.file, line: request.line, text: None };
        visit(Rendered { ordinal, custom_id: &custom_id, endpoint, body: &body, spot }, report);
    }

    /// Reads the ids of some requests again.
    pub(super) fn ids(&self, wanted: &[u32], visit: Visit<'_>) {
        if wanted.is_empty() {
            return;
        }
        self.each(None, &mut Report::default(), &mut |rendered, _| {
            if wanted.binary_search(&rendered.ordinal).is_ok() {
                let Spot { file, line, .. } = rendered.spot;
                visit(rendered.ordinal, rendered.custom_id, Place { file: file.to_owned(), line, column: 0 });
            }
        });
    }
}

/// Size and last write of a file: when they change, some of its bytes may have been missed.
pub(super) fn written(file: &File) -> Option<(u64, i64, i64)> {
    let metadata = file.metadata().ok()?;
    Some((metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Makes requests of rows.
struct Rows<'s> {
    spec: &'s Spec<'s>,
    variables: Vec<String>,
    /// The members that every body begins with, ready to be followed by the row's own.
    head: String,
    ordinal: u32,
    /// Lines of the files before this one, each up to its last row.
    lines_before: u32,
    /// The line of the last row.
    line: u32,
    /// What bare bodies of this file mean.
    ending: Option<Kind>,
    /// A template fails for every row: the first one is enough.
    hopeless: bool,
}

impl<'s> Rows<'s> {
    fn new(spec: &'s Spec<'s>) -> Self {
        let head = match &spec.work {
            // The content comes last, so that what stands before it can be made once.
            Work::Rows { content, .. } => merged(spec, &[(content.key, "")]),
            Work::Lines { .. } | Work::Inline(_) | Work::FineTune(_) => String::new(),
        };
        Self {
            spec,
            variables: spec.templates.variables(),
            head,
            ordinal: 0,
            lines_before: 0,
            line: 0,
            ending: None,
            hopeless: false,
        }
    }

    fn row(&mut self, row: Row<'_>, spot: Spot<'_>, report: &mut Report, visit: EachRequest<'_>) -> Visited {
        if self.hopeless {
            return Ok(());
        }
        self.line = spot.line;
        match &self.spec.work {
            Work::Rows { custom_id, content, .. } => {
                let fields = row.fields(&self.variables)?;
                self.ordinal = self.ordinal.saturating_add(1);
                let keys = || row.keys();
                let render = |id: TemplateId| self.spec.templates.render(id, &fields, &keys);
                let custom_id = match custom_id {
                    Some(id) => render(*id),
                    None => Ok(format!("row-{}", self.ordinal)),
                };
                let made = custom_id.and_then(|id| Ok((id, self.body(content, row, &render)?)));
                match (made, self.spec.kind.endpoint()) {
                    (Ok((custom_id, body)), Some(endpoint)) => {
                        let ordinal = self.ordinal;
                        visit(
                            Rendered { ordinal, custom_id: &custom_id, endpoint, body: &body, spot },
                            report,
                        );
                    }
                    (Err(failed), _) => self.failed(failed, spot, report),
                    (Ok(_), None) => {}
                }
                Ok(())
            }
            Work::Lines { .. } => match row {
                Row::Object(text) => self.line(text, spot, report, visit),
                Row::Record { .. } | Row::Text(_) => Ok(()),
            },
            Work::Inline(_) | Work::FineTune(_) => Ok(()),
        }
    }

    fn body(
        &self,
        content: &Content,
        row: Row<'_>,
        render: &dyn Fn(TemplateId) -> Result<String, Failed>,
    ) -> Result<String, Failed> {
        let mut body = format!("{{{}", self.head);
        match (&content.pieces, row) {
            (Some(pieces), _) => {
                for piece in pieces {
                    match piece {
                        Piece::Json(json) => body.push_str(json),
                        Piece::Template(id) => body.push_str(&quoted(&render(*id)?)),
                    }
                }
            }
            (None, Row::Text(text)) => body.push_str(&quoted(text)),
            (None, Row::Object(_) | Row::Record { .. }) => body.push_str("null"),
        }
        body.push('}');
        Ok(body)
    }

    fn failed(&mut self, failed: Failed, spot: Spot<'_>, report: &mut Report) {
        self.hopeless = failed.always;
        let mut error = Diagnostic::error(spot.file, spot.line, 0, failed.message);
        error.hint = failed.hint;
        report.push(error);
    }

    /// A line of a file of requests, with the job's model and parameters put in.
    fn line(&mut self, text: &str, spot: Spot<'_>, report: &mut Report, visit: EachRequest<'_>) -> Visited {
        let spot = Spot { text: Some(text), ..spot };
        let number = self.lines_before.saturating_add(spot.line);
        let rules = Rules { ending: self.ending, number, has_model: self.spec.model.is_some() };
        let Some(request) = line::read(text, rules, &mut |problem| report.push(problem.at(spot)))? else {
            self.ordinal = self.ordinal.saturating_add(1);
            return Ok(());
        };
        self.ordinal = self.ordinal.saturating_add(1);
        let needs_model = request.model.is_none() && self.spec.model.is_some();
        let (ordinal, endpoint) = (self.ordinal, request.endpoint);
        let custom_id = request.custom_id.as_ref();
        let own = request.body.text();
        if self.spec.parameters.is_empty() && !needs_model {
            visit(Rendered { ordinal, custom_id, endpoint, body: own, spot }, report);
            return Ok(());
        }
        let members = json::members(own).map_err(|error| Syntax::new(own, &error))?;
        let own: Vec<(&str, &str)> =
            members.iter().map(|member| (member.key.as_ref(), member.value)).collect();
        let body = format!("{{{}}}", merged(self.spec, &own));
        let spot = Spot { text: None, ..spot };
        visit(Rendered { ordinal, custom_id, endpoint, body: &body, spot }, report);
        Ok(())
    }
}

/// The members of a body: the model first, then the parameters that the request does not have itself, then
/// the request's own.
fn merged(spec: &Spec<'_>, own: &[(&str, &str)]) -> String {
    // A request may say `null` for its model and still get the job's.
    let named = own.iter().find(|(key, value)| *key == "model" && *value != "null").map(|(_, value)| *value);
    let model = named.or(spec.model.as_deref()).map(|model| ("model", model));
    let others = spec.parameters.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let others = others.filter(|(key, _)| !own.iter().any(|(name, _)| name == key));
    let own = own.iter().copied().filter(|(key, _)| *key != "model");
    let mut text = String::new();
    for (key, value) in model.into_iter().chain(others).chain(own) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&quoted(key));
        text.push(':');
        text.push_str(value);
    }
    text
}
