//! What is peculiar to bare request bodies: their `metadata`, and what people take for them.

use std::borrow::Cow;

use crate::domain::Endpoint;
use crate::spec::pick::{Field, pick};

/// Whether the endpoint has a `metadata` parameter of its own.
pub(super) const fn takes_metadata(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Responses)
}

/// The value of `custom_id` in a bare body's `metadata`, placed in the line.
pub(super) fn custom_id_in(metadata: Field<'_>) -> Option<Field<'_>> {
    if !metadata.text().starts_with('{') {
        return None;
    }
    let custom_id = pick(metadata.text(), &["custom_id"]).ok()?.get(0)?;
    Some(Field { offset: metadata.offset + custom_id.offset, ..custom_id })
}

/// A row that shows a model what to answer rather than asking it.
pub(super) fn is_training_row(completion: Option<Field<'_>>, messages: Option<Field<'_>>) -> bool {
    #[derive(serde::Deserialize)]
    struct Message<'a> {
        #[serde(borrow)]
        role: Option<Cow<'a, str>>,
    }
    if completion.is_some() {
        return true;
    }
    let messages = messages.and_then(|field| serde_json::from_str::<Vec<Message<'_>>>(field.text()).ok());
    let last = messages.as_ref().and_then(|messages| messages.last());
    last.is_some_and(|message| message.role.as_deref() == Some("assistant"))
}

/// `text`, a JSON object, without the member whose value is `field` and whose key holds no quote.
pub(super) fn without(text: &str, field: Field<'_>) -> Option<String> {
    let (before, rest) = text.split_at_checked(field.offset)?;
    let after = rest.get(field.text().len()..)?;
    // Back over `"key":` to what stands before the key's first quote.
    let key_end = before.rfind('"')?;
    let key_start = before.get(..key_end)?.rfind('"')?;
    let before = before.get(..key_start)?;
    let (before, after) = match after.trim_start().strip_prefix(',') {
        Some(after) => (before, after.trim_start()),
        None => (before.trim_end().strip_suffix(',').unwrap_or(before), after),
    };
    Some(format!("{}{}", before.trim_start(), after.trim_end()))
}
