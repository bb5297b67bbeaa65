//! Single members of a request body: their types and ranges, refused in OpenAI's words.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::refusal::Refusal;

/// A string, borrowed where it holds no escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

pub(super) fn string(
    raw: Option<&RawValue>,
    param: impl Into<Cow<'static, str>>,
) -> Result<Option<Cow<'_, str>>, Refusal> {
    let Some(raw) = raw else { return Ok(None) };
    match serde_json::from_str::<Text<'_>>(raw.get()) {
        Ok(Text(text)) => Ok(Some(text)),
        Err(_) => Err(Refusal::invalid_type(param, "a string", raw.get())),
    }
}

pub(super) fn boolean(
    raw: Option<&RawValue>,
    param: impl Into<Cow<'static, str>>,
) -> Result<Option<bool>, Refusal> {
    let Some(raw) = raw else { return Ok(None) };
    serde_json::from_str(raw.get())
        .map(Some)
        .map_err(|_| Refusal::invalid_type(param, "a boolean", raw.get()))
}

pub(super) fn integer(
    raw: Option<&RawValue>,
    param: impl Into<Cow<'static, str>>,
    least: u64,
    most: u64,
) -> Result<Option<u64>, Refusal> {
    let Some(raw) = raw else { return Ok(None) };
    let param = param.into();
    let Ok(value) = serde_json::from_str::<i128>(raw.get()) else {
        return Err(Refusal::invalid_type(param, "an integer", raw.get()));
    };
    match u64::try_from(value) {
        Ok(value) if (least..=most).contains(&value) => Ok(Some(value)),
        _ => {
            let message =
                format!("Invalid '{param}': expected a value from {least} to {most}, but got {value}.");
            Err(Refusal::invalid_value(param, message))
        }
    }
}

/// Of answers it is the range alone that matters: their numbers change nothing here.
pub(super) fn number(
    raw: Option<&RawValue>,
    param: impl Into<Cow<'static, str>>,
    least: f64,
    most: f64,
) -> Result<Option<f64>, Refusal> {
    let Some(raw) = raw else { return Ok(None) };
    let param = param.into();
    let Ok(value) = serde_json::from_str::<f64>(raw.get()) else {
        return Err(Refusal::invalid_type(param, "a number", raw.get()));
    };
    if (least..=most).contains(&value) {
        return Ok(Some(value));
    }
    let message = format!("Invalid '{param}': expected a value from {least} to {most}, but got {value}.");
    Err(Refusal::invalid_value(param, message))
}

/// A word that is none of the `expected` ones.
pub(super) fn unsupported(param: &'static str, found: &str, expected: &str) -> Refusal {
    let message = format!("Invalid value: '{found}'. Supported values are: {expected}.");
    Refusal::invalid_value(param, message)
}
