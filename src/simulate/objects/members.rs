//! The members of a JSON body, taken one by one: what is left over is refused, as OpenAI refuses what it doesn't know.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::simulate::member;
use crate::simulate::refusal::Refusal;

/// A parameter that may be left to the server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Auto<T> {
    Auto,
    Given(T),
}

impl<T: Copy> Auto<T> {
    pub(super) fn or(self, chosen: T) -> T {
        match self {
            Self::Auto => chosen,
            Self::Given(value) => value,
        }
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Given(value) => value.serialize(serializer),
        }
    }
}

/// A JSON object, of which every member is taken at most once. `null` counts as absent.
#[derive(Debug)]
pub(super) struct Members<'a> {
    /// What stands before the names of members in messages, like `method.`.
    prefix: String,
    members: BTreeMap<String, &'a RawValue>,
}

impl<'a> Members<'a> {
    pub(super) fn of_body(body: &'a [u8]) -> Result<Self, Refusal> {
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(Refusal::no_object());
        }
        let members = serde_json::from_slice(body).map_err(|error| Refusal::bad_json(&error))?;
        Ok(Self { prefix: String::new(), members })
    }

    pub(super) fn raw(&mut self, name: &str) -> Option<&'a RawValue> {
        self.members.remove(name).filter(|raw| raw.get() != "null")
    }

    /// As it is written, for members that only come back.
    pub(super) fn value(&mut self, name: &str) -> Option<Value> {
        self.raw(name).and_then(|raw| serde_json::from_str(raw.get()).ok())
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<Cow<'a, str>>, Refusal> {
        member::string(self.raw(name), self.param(name))
    }

    pub(super) fn required_text(&mut self, name: &str) -> Result<Cow<'a, str>, Refusal> {
        self.text(name)?.ok_or_else(|| self.missing(name))
    }

    pub(super) fn integer(&mut self, name: &str, least: u64, most: u64) -> Result<Option<u64>, Refusal> {
        member::integer(self.raw(name), self.param(name), least, most)
    }

    pub(super) fn number(&mut self, name: &str, least: f64, most: f64) -> Result<Option<f64>, Refusal> {
        member::number(self.raw(name), self.param(name), least, most)
    }

    pub(super) fn boolean(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        member::boolean(self.raw(name), self.param(name))
    }

    /// An object that is read in turn.
    pub(super) fn object(&mut self, name: &str) -> Result<Option<Self>, Refusal> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        let param = self.param(name);
        let members = serde_json::from_str(raw.get())
            .map_err(|_| Refusal::invalid_type(param.clone(), "an object", raw.get()))?;
        Ok(Some(Self { prefix: format!("{param}."), members }))
    }

    pub(super) fn auto_integer(&mut self, name: &str, least: u64, most: u64) -> Result<Auto<u64>, Refusal> {
        match self.raw_unless_auto(name) {
            None => Ok(Auto::Auto),
            raw => Ok(member::integer(raw, self.param(name), least, most)?.map_or(Auto::Auto, Auto::Given)),
        }
    }

    pub(super) fn auto_number(&mut self, name: &str, most: f64) -> Result<Auto<f64>, Refusal> {
        match self.raw_unless_auto(name) {
            None => Ok(Auto::Auto),
            raw => {
                let value = member::number(raw, self.param(name), f64::MIN_POSITIVE, most)?;
                Ok(value.map_or(Auto::Auto, Auto::Given))
            }
        }
    }

    fn raw_unless_auto(&mut self, name: &str) -> Option<&'a RawValue> {
        self.raw(name).filter(|raw| raw.get() != "\"auto\"")
    }

    /// Refuses what nobody has asked for.
    pub(super) fn end(self) -> Result<(), Refusal> {
        match self.members.into_keys().next() {
            Some(name) => Err(Refusal::unknown_parameter(format!("{}{name}", self.prefix))),
            None => Ok(()),
        }
    }

    pub(super) fn missing(&self, name: &str) -> Refusal {
        Refusal::missing(self.param(name))
    }

    /// A member's full name.
    pub(super) fn param(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_named_in_full_where_they_are_wrong() {
        let body = br#"{"method":{"type":"dpo","beta":3,"n":"auto","m":7,"x":null}}"#;
        let mut members = Members::of_body(body).unwrap();
        let mut method = members.object("method").unwrap().unwrap();
        members.end().unwrap();
        assert_eq!(method.text("type").unwrap().as_deref(), Some("dpo"));
        assert_eq!(method.auto_integer("n", 1, 5).unwrap(), Auto::Auto);
        assert_eq!(method.auto_integer("absent", 1, 5).unwrap(), Auto::Auto);
        let said = |refusal: Refusal| String::from_utf8(refusal.body()).unwrap();
        assert!(said(method.auto_integer("m", 1, 5).unwrap_err()).contains("\"param\":\"method.m\""));
        assert!(said(method.auto_number("beta", 2.0).unwrap_err()).contains("'method.beta'"));
        assert!(
            said(method.required_text("x").unwrap_err()).contains("Missing required parameter: 'method.x'")
        );
        method.end().unwrap();
        let stray = Members::of_body(br#"{"n_epocs":3}"#).unwrap().end().unwrap_err();
        assert_eq!(stray.name, "unknown_parameter");
        assert_eq!(Members::of_body(b"[1]").unwrap_err().status, 400);
    }
}
