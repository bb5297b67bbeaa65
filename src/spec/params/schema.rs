//! The table of parameters as JSON Schema, for editors and generators of specs.
//!
//! # What it does not do
//! - Rules that tie a parameter to others or to a model have no place in it: `batchd check` knows them.
//! - A `WIDTHxHEIGHT` is held to its form, not to its bounds.

use serde_json::{Map, Value, json};

use super::table::{self, Keys, Object, Parameter, Shape, Text};
use crate::domain::Endpoint;

/// Where the schema of a spec keeps the shapes that several parameters share.
pub(in crate::spec) const SHAPES: &str = "#/$defs/";

/// The parameters of a request to `endpoint`. Others may stand beside them: servers differ.
pub(in crate::spec) fn of(endpoint: Endpoint) -> Value {
    let parameters = table::of(endpoint).values().filter(|parameter| parameter.refusal().is_none());
    let properties: Map<String, Value> =
        parameters.map(|parameter| (parameter.name.clone(), property(parameter))).collect();
    json!({ "type": "object", "properties": properties })
}

/// The shapes that several parameters share, by name.
pub(in crate::spec) fn shapes() -> Map<String, Value> {
    table::shapes().iter().map(|(name, shape)| (name.clone(), value(shape))).collect()
}

fn property(parameter: &Parameter) -> Value {
    let mut schema = value(&parameter.value);
    if let (Some(members), Some(instead)) = (schema.as_object_mut(), &parameter.deprecated) {
        members.insert("deprecated".to_owned(), true.into());
        members.insert("description".to_owned(), instead.as_str().into());
    }
    schema
}

fn value(shape: &Shape) -> Value {
    match shape {
        Shape::Any => json!({}),
        Shape::Null => json!({ "type": "null" }),
        Shape::Boolean => json!({ "type": "boolean" }),
        Shape::Integer { min, max } => with(
            json!({ "type": "integer" }),
            [("minimum", min.map(Value::from)), ("maximum", max.map(Value::from))],
        ),
        Shape::Number { min, max } => with(
            json!({ "type": "number" }),
            [("minimum", min.map(Value::from)), ("maximum", max.map(Value::from))],
        ),
        Shape::String(text) => string(text),
        Shape::Size(_) => json!({ "type": "string", "pattern": "^(auto|[0-9]+x[0-9]+)$" }),
        Shape::Array { items_min, items_max, items } => with(
            json!({ "type": "array", "items": value(items) }),
            [("minItems", items_min.map(Value::from)), ("maxItems", items_max.map(Value::from))],
        ),
        Shape::Map(map) => with(
            json!({ "type": "object", "additionalProperties": value(&map.values) }),
            [
                ("maxProperties", map.pairs_max.map(Value::from)),
                ("propertyNames", key_of(map.key_chars_max, map.keys)),
            ],
        ),
        Shape::Object(object) => members(object),
        Shape::Tagged { tag, cases } => {
            let cases = cases.iter().map(|(case, name)| {
                json!({
                    "if": { "properties": { tag: { "const": case } } },
                    "then": reference(name),
                })
            });
            let tags: Vec<Value> = tagged(shape);
            json!({
                "type": "object",
                "required": [tag],
                "properties": { tag: { "enum": tags } },
                "allOf": cases.collect::<Vec<_>>(),
            })
        }
        Shape::Either { of } => json!({ "anyOf": of.iter().map(value).collect::<Vec<_>>() }),
        Shape::Named { name } => reference(name),
    }
}

fn tagged(shape: &Shape) -> Vec<Value> {
    let Shape::Tagged { cases, .. } = shape else { return Vec::new() };
    cases.keys().map(|case| case.as_str().into()).collect()
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("{SHAPES}{name}") })
}

fn string(text: &Text) -> Value {
    let pattern = text.word.then(|| Value::from("^[A-Za-z0-9_-]*$"));
    let words = (!text.one_of.is_empty()).then(|| Value::from(text.one_of.clone()));
    with(
        json!({ "type": "string" }),
        [
            ("minLength", text.chars_min.map(Value::from)),
            ("maxLength", text.chars_max.map(Value::from)),
            ("enum", words),
            ("pattern", pattern),
        ],
    )
}

fn key_of(chars_max: Option<usize>, keys: Option<Keys>) -> Option<Value> {
    match (chars_max, keys) {
        (None, None) => None,
        (chars_max, keys) => Some(with(
            json!({}),
            [
                ("maxLength", chars_max.map(Value::from)),
                ("pattern", keys.map(|Keys::Integer| Value::from("^-?[0-9]+$"))),
            ],
        )),
    }
}

fn members(object: &Object) -> Value {
    let properties: Map<String, Value> =
        object.members.iter().map(|(name, shape)| (name.clone(), value(shape))).collect();
    let any_of: Vec<Value> = object.any_of.iter().map(|name| json!({ "required": [name] })).collect();
    with(
        json!({ "type": "object", "properties": properties }),
        [
            ("required", (!object.required.is_empty()).then(|| object.required.clone().into())),
            ("anyOf", (!any_of.is_empty()).then(|| any_of.into())),
        ],
    )
}

/// `schema` with those of `keywords` that there are.
fn with<const N: usize>(mut schema: Value, keywords: [(&str, Option<Value>); N]) -> Value {
    if let Some(members) = schema.as_object_mut() {
        let given = keywords.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        members.extend(given);
    }
    schema
}
