//! Which endpoint the `url` of a batch line means, and what to do about one that means none.

use crate::diag;
use crate::domain::Endpoint;
use crate::domain::request::UnknownEndpoint;
use crate::reading::problem::{Problem, shown};
use crate::spec::pick::Field;

pub(super) fn endpoint(url: Option<Field<'_>>) -> Result<Endpoint, Problem> {
    let Some(field) = url else {
        return Err(Problem::error(0, "missing `url`").hint(format!("one of {}", urls())));
    };
    match field.string().map(|url| (url.parse(), url)) {
        Ok((Ok(endpoint), _)) => Ok(endpoint),
        Ok((Err(UnknownEndpoint), url)) => {
            Err(Problem::error(field.offset, format!("unknown url {}", shown(&url))).hint(hint(&url)))
        }
        Err(found) => Err(Problem::error(field.offset, format!("`url` is {}, expected a string", found.0))
            .hint(format!("one of {}", urls()))),
    }
}

fn urls() -> String {
    let urls: Vec<String> = Endpoint::ALL.iter().map(|endpoint| format!("`{endpoint}`")).collect();
    urls.join(", ")
}

/// What to do about a url that is no endpoint.
fn hint(url: &str) -> String {
    if url.contains("fine_tuning") || url.contains("fine-tune") {
        return "fine-tunes are TOML jobs with `kind = \"fine_tune\"`".to_owned();
    }
    if url.contains("images/edits") || url.contains("images/variations") {
        return "image edits need files, which a line of JSONL can't hold: they are not run".to_owned();
    }
    if let Some(endpoint) = Endpoint::ALL.iter().find(|endpoint| url.ends_with(endpoint.url())) {
        return format!("write the path alone, `{endpoint}`: the provider's base_url comes from the config");
    }
    let near = if url.len() <= 64 { diag::nearest(url, Endpoint::ALL.map(Endpoint::url)) } else { None };
    near.map_or_else(|| format!("expected one of {}", urls()), |near| format!("did you mean `{near}`?"))
}
