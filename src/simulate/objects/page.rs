//! Lists a page at a time: `after`, `limit`, `order`, and what the reply says about more.

use serde_json::{Value, json};
use url::form_urlencoded;

use crate::simulate::refusal::Refusal;

/// Which part of a list is asked for.
#[derive(Debug)]
pub(in crate::simulate) struct Page {
    /// The id of the last item of the page before.
    after: Option<String>,
    limit: usize,
    pub(super) is_ascending: bool,
}

impl Page {
    /// Reads a query; `limit` is `default` where it is absent, and 1 to `most`.
    pub(super) fn read(query: &str, default: usize, most: usize) -> Result<Self, Refusal> {
        let limit = match member(query, "limit") {
            None => default,
            Some(text) => {
                let limit = text.parse().ok().filter(|limit| (1..=most).contains(limit));
                limit.ok_or_else(|| {
                    let message =
                        format!("Invalid 'limit': expected a value from 1 to {most}, but got {text}.");
                    Refusal::invalid_value("limit", message)
                })?
            }
        };
        let is_ascending = match member(query, "order").as_deref() {
            None | Some("desc") => false,
            Some("asc") => true,
            Some(order) => {
                let message = format!("Invalid value: '{order}'. Supported values are: 'asc' and 'desc'.");
                return Err(Refusal::invalid_value("order", message));
            }
        };
        Ok(Self { after: member(query, "after"), limit, is_ascending })
    }

    /// This page of `items`, and whether there are more behind it.
    pub(super) fn of<'t, T>(
        &self,
        mut items: impl Iterator<Item = &'t T>,
        id: impl Fn(&T) -> &str,
    ) -> Result<(Vec<&'t T>, bool), Refusal> {
        if let Some(after) = &self.after
            && !items.by_ref().any(|item| id(item) == after)
        {
            let message = format!("Invalid 'after': there is no '{after}' in this list.");
            return Err(Refusal::invalid_value("after", message));
        }
        let page: Vec<&T> = items.by_ref().take(self.limit).collect();
        Ok((page, items.next().is_some()))
    }
}

/// A reply that holds one page.
pub(super) fn reply(data: &[Value], has_more: bool) -> Value {
    // An empty list has strings all the same: the API's document wants them.
    let id = |item: Option<&Value>| item.and_then(|item| item["id"].as_str()).unwrap_or_default().to_owned();
    let (first_id, last_id) = (id(data.first()), id(data.last()));
    json!({ "object": "list", "data": data, "first_id": first_id, "last_id": last_id, "has_more": has_more })
}

/// An object with more members than all of its kind have.
pub(super) fn with<N: Into<String>>(
    mut object: Value,
    members: impl IntoIterator<Item = (N, Value)>,
) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.extend(members.into_iter().map(|(name, value)| (name.into(), value)));
    }
    object
}

/// One member of a query, decoded; the first of several.
pub(super) fn member(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_without_gap_or_repetition() {
        let items: Vec<String> = (1..=5).map(|number| format!("file-{number}")).collect();
        let mut seen: Vec<String> = Vec::new();
        let mut query = "limit=2".to_owned();
        loop {
            let page = Page::read(&query, 20, 100).unwrap();
            let (data, has_more) = page.of(items.iter(), |item| item).unwrap();
            assert!(data.len() <= 2);
            seen.extend(data.into_iter().cloned());
            if !has_more {
                break;
            }
            query = format!("limit=2&after={}", seen.last().unwrap());
        }
        assert_eq!(seen, items);
    }

    #[test]
    fn what_is_no_page_is_refused() {
        for query in ["limit=0", "limit=101", "limit=x", "order=up"] {
            assert_eq!(Page::read(query, 20, 100).unwrap_err().status, 400, "{query}");
        }
        let unknown = Page::read("after=file-9", 20, 100).unwrap();
        assert!(unknown.of(["file-1".to_owned()].iter(), |item| item).is_err());
    }
}
