//! The table of parameters: `table.toml`, read once.
//!
//! # Format
//! Every `[[parameter]]`, `[[rule]]` and `[shapes.NAME]` of the file is one [`Parameter`], [`Rule`] or
//! [`Shape`] here, and an unknown key in it fails the tests. A fact about the API that changes is changed
//! there; code changes only for a new sort of fact.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::domain::{Endpoint, Kind};

static TABLE: LazyLock<Table> =
    LazyLock::new(|| Table::parse(include_str!("table.toml")).expect("the table in the program is valid"));

/// What is known of one endpoint, by name.
pub(super) type Parameters = BTreeMap<String, Parameter>;

/// One member of a request body.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameter {
    pub(super) name: String,
    on: Vec<Kind>,
    #[serde(default)]
    pub(super) null: bool,
    #[serde(default)]
    pub(super) required: bool,
    /// Members that stand in for this one.
    #[serde(default)]
    pub(super) unless: Vec<String>,
    pub(super) deprecated: Option<String>,
    pub(super) legacy: Option<String>,
    pub(super) never: Option<String>,
    #[serde(default)]
    pub(super) value: Shape,
    /// The rules about this member at this endpoint.
    #[serde(skip)]
    pub(super) rules: Vec<Rule>,
}

impl Parameter {
    /// What to do instead, for a parameter that is not to be sent at all.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.legacy.as_deref().or(self.never.as_deref())
    }
}

/// What a value must be. All bounds are inclusive.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Shape {
    #[default]
    Any,
    Null,
    Boolean,
    Integer {
        min: Option<i64>,
        max: Option<i64>,
    },
    Number {
        min: Option<f64>,
        max: Option<f64>,
    },
    String(Text),
    /// `WIDTHxHEIGHT` in pixels, or `auto`.
    Size(Size),
    Array {
        items_min: Option<usize>,
        items_max: Option<usize>,
        items: Box<Shape>,
    },
    /// An object with members of our own choosing.
    Map(Map),
    /// An object whose members are listed; others are left alone, unless nearly named like one of these.
    Object(Object),
    /// An object whose member `tag` says which of the named shapes it has.
    Tagged {
        tag: String,
        cases: BTreeMap<String, String>,
    },
    /// The first of these that has the JSON type of the value (and, of an array, of its first item).
    Either {
        of: Vec<Shape>,
    },
    Named {
        name: String,
    },
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Text {
    pub(super) chars_min: Option<usize>,
    pub(super) chars_max: Option<usize>,
    /// Empty: every text.
    pub(super) one_of: Vec<String>,
    /// Only letters, digits, `_` and `-`.
    pub(super) word: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Size {
    /// Both edges are multiples of it.
    pub(super) step: Option<u32>,
    /// The long edge over the short one.
    pub(super) ratio_max: Option<u32>,
    pub(super) long_max: Option<u32>,
    pub(super) short_max: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Map {
    pub(super) pairs_max: Option<usize>,
    pub(super) key_chars_max: Option<usize>,
    pub(super) keys: Option<Keys>,
    pub(super) values: Box<Shape>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Keys {
    Integer,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Object {
    pub(super) members: BTreeMap<String, Shape>,
    pub(super) required: Vec<String>,
    /// At least one of these, and not null. Empty: nothing is asked.
    pub(super) any_of: Vec<String>,
}

/// A condition that a shape cannot say: of other members, or of a model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    on: Vec<Kind>,
    pub(super) member: String,
    /// The member's value as JSON text.
    pub(super) when: Option<String>,
    #[serde(default)]
    models: Vec<String>,
    #[serde(default)]
    except: Vec<String>,
    pub(super) check: Check,
    pub(super) hint: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Check {
    /// The member (or its value under `when`) is refused.
    Refused,
    /// The value has this shape, too.
    Narrow { value: Shape },
    /// `other` has one of `values` (JSON texts), or may be absent.
    Needs {
        other: String,
        values: Vec<String>,
        #[serde(default)]
        or_absent: bool,
    },
    /// As numbers, the member is not below `other`.
    AtLeast { other: String },
    /// `other` does not stand beside the member.
    Apart { other: String },
}

impl Rule {
    /// Whether the rule is about this model.
    pub(super) fn concerns(&self, model: Option<&str>) -> bool {
        if self.models.is_empty() {
            return true;
        }
        let Some(model) = model else { return false };
        // Routers write `openai/gpt-6-luna`, fine-tuned models are `ft:gpt-4.1-mini:…`.
        let model = model.rsplit('/').next().unwrap_or(model);
        let model = model.strip_prefix("ft:").unwrap_or(model);
        let begins = |prefixes: &[String]| prefixes.iter().any(|prefix| model.starts_with(prefix.as_str()));
        begins(&self.models) && !begins(&self.except)
    }

    /// Whether the rule is about the model, not about requests at large.
    pub(super) const fn is_of_models(&self) -> bool {
        !self.models.is_empty()
    }
}

/// The whole file, cut by endpoint.
#[derive(Debug, Default)]
struct Table {
    by_endpoint: BTreeMap<Endpoint, Parameters>,
    shapes: BTreeMap<String, Shape>,
    servers: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    servers: Vec<String>,
    parameter: Vec<Parameter>,
    rule: Vec<Rule>,
    shapes: BTreeMap<String, Shape>,
}

impl Table {
    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        let document: Document = toml::from_str(text)?;
        let mut table = Self { shapes: document.shapes, servers: document.servers, ..Self::default() };
        for parameter in document.parameter {
            for endpoint in parameter.on.iter().filter_map(|kind| kind.endpoint()) {
                let parameters = table.by_endpoint.entry(endpoint).or_default();
                let mut parameter = parameter.clone();
                let concerning = |rule: &&Rule| {
                    rule.member == parameter.name
                        && rule.on.iter().any(|kind| kind.endpoint() == Some(endpoint))
                };
                parameter.rules = document.rule.iter().filter(concerning).cloned().collect();
                parameters.insert(parameter.name.clone(), parameter);
            }
        }
        table.servers.sort();
        Ok(table)
    }
}

pub(super) fn of(endpoint: Endpoint) -> &'static Parameters {
    TABLE.by_endpoint.get(&endpoint).expect("the table has every endpoint")
}

pub(super) fn shape(name: &str) -> &'static Shape {
    TABLE.shapes.get(name).expect("every shape that the table names is in it")
}

/// Every shape that has a name.
pub(super) fn shapes() -> &'static BTreeMap<String, Shape> {
    &TABLE.shapes
}

/// Whether compatible servers have a parameter of this name.
pub(super) fn is_of_servers(name: &str) -> bool {
    TABLE.servers.binary_search_by(|known| known.as_str().cmp(name)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(shape: &Shape, seen: &mut dyn FnMut(&Shape)) {
        seen(shape);
        match shape {
            Shape::Array { items, .. } => walk(items, seen),
            Shape::Map(map) => walk(&map.values, seen),
            Shape::Object(object) => object.members.values().for_each(|member| walk(member, seen)),
            Shape::Either { of } => of.iter().for_each(|one| walk(one, seen)),
            Shape::Any
            | Shape::Null
            | Shape::Boolean
            | Shape::Integer { .. }
            | Shape::Number { .. }
            | Shape::String(_)
            | Shape::Size(_)
            | Shape::Tagged { .. }
            | Shape::Named { .. } => {}
        }
    }

    #[test]
    fn every_endpoint_and_every_named_shape_is_in_the_table() {
        let mut named = Vec::new();
        let mut note = |shape: &Shape| {
            if let Shape::Named { name } = shape {
                named.push(name.clone());
            } else if let Shape::Tagged { cases, .. } = shape {
                named.extend(cases.values().cloned());
            }
        };
        for endpoint in Endpoint::ALL {
            for parameter in of(endpoint).values() {
                walk(&parameter.value, &mut note);
            }
        }
        TABLE.shapes.values().for_each(|one| walk(one, &mut note));
        for name in &named {
            assert!(TABLE.shapes.contains_key(name), "{name}");
        }
        for name in TABLE.shapes.keys() {
            assert!(named.contains(name), "no one uses {name}");
        }
    }

    #[test]
    fn a_parameter_stands_once_for_an_endpoint_and_says_one_thing() {
        let document: Document = toml::from_str(include_str!("table.toml")).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for parameter in &document.parameter {
            for kind in &parameter.on {
                assert!(kind.endpoint().is_some(), "{kind}");
                assert!(
                    seen.insert((*kind, parameter.name.clone())),
                    "{kind} {} stands twice",
                    parameter.name
                );
            }
            let refused = parameter.legacy.is_some() || parameter.never.is_some();
            let judged = !matches!(parameter.value, Shape::Any) || parameter.name == "model";
            assert!(refused != judged, "{} has a value or is refused", parameter.name);
        }
        for rule in &document.rule {
            for kind in &rule.on {
                assert!(seen.contains(&(*kind, rule.member.clone())), "{kind} has no {}", rule.member);
            }
        }
    }

    #[test]
    fn an_object_that_requires_a_member_lists_it() {
        let check = |shape: &Shape| {
            if let Shape::Object(object) = shape {
                for name in object.required.iter().chain(&object.any_of) {
                    assert!(object.members.contains_key(name), "{name}");
                }
            }
        };
        for endpoint in Endpoint::ALL {
            for parameter in of(endpoint).values() {
                walk(&parameter.value, &mut { check });
            }
        }
        TABLE.shapes.values().for_each(|shape| walk(shape, &mut { check }));
    }

    #[test]
    fn a_rule_knows_models_behind_a_vendor_and_a_fine_tune() {
        let rules = &of(Endpoint::ChatCompletions)["max_tokens"].rules;
        let rule = rules.iter().find(|rule| rule.is_of_models()).unwrap();
        for (model, concerned) in [
            ("gpt-5-mini", true),
            ("openai/gpt-5-mini", true),
            ("ft:gpt-5-mini:us::1", true),
            ("gpt-5-chat-latest", false),
            ("my-gpt-5", false),
        ] {
            assert_eq!(rule.concerns(Some(model)), concerned, "{model}");
        }
        assert!(!rule.concerns(None));
    }

    #[test]
    fn a_misspelt_key_in_the_table_is_no_table() {
        let text = "servers = []\nparameter = []\nrule = []\nshapes.x = { type = \"integer\", maxx = 1 }";
        assert!(Table::parse(text).is_err());
        assert!(Table::parse(&text.replace("maxx", "max")).is_ok());
    }
}
