//! Lists at the provider, page by page.
//!
//! # Invariants
//!
//! - A walk ends, whatever the server does: after [`PAGES_MAX`] pages, and at the first page that it has seen (a
//!   server that doesn't know `after` sends its first page for ever).
//! - Nothing is visited twice.
//! - Whether the list was seen to its end is part of the answer: "not found" in half a list proves nothing.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use reqwest::Method;
use serde_json::value::RawValue;
use url::Url;

use crate::domain::record::text_of;
use crate::provider::Provider;
use crate::provider::ask::{Called, Effect, Object};
use crate::provider::classify::unanswerable;
use crate::provider::json::Members;

/// Pages that are read of one list.
const PAGES_MAX: u32 = 100;

/// What a reply lacks that is no list.
const LACKS: &str = "it lacks `data`, a list";

/// Part of a list.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// Those that could be read.
    pub items: Vec<T>,
    /// As the server says; many don't.
    pub has_more: Option<bool>,
    /// What to ask for with `after` to get the next page.
    pub last_id: Option<String>,
}

/// How a walk along a list ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walked<R> {
    /// The visitor had seen enough.
    Stopped(R),
    /// Everything was visited.
    Whole,
    /// The server has more, and no way to it.
    Cut,
}

impl<R> Walked<R> {
    /// What was searched for. A list that was not seen to its end is an error.
    pub(super) fn found(self, list: &str) -> Called<Option<R>> {
        match self {
            Self::Stopped(found) => Ok(Some(found)),
            Self::Whole => Ok(None),
            Self::Cut => {
                let message = format!("the provider's list of {list} can't be read to its end");
                Err(Box::new(unanswerable("list_too_long", message)))
            }
        }
    }
}

/// Adds to the query of `url`.
pub(super) fn with_query(mut url: Url, name: &str, value: &str) -> Url {
    url.query_pairs_mut().append_pair(name, value);
    url
}

impl Provider {
    /// One page of the list at `url`.
    pub(super) async fn page<T: Object>(&self, url: Url) -> Called<Page<T>> {
        let reply = self.ask(Method::GET, url, None, Effect::Idempotent).await?;
        read(&text_of(&reply.body)).ok_or_else(|| self.failure(&reply, LACKS, Effect::Idempotent).into())
    }

    /// Shows `visit` the items of the list at `url`, in the server's order, until it breaks.
    pub(super) async fn walk<T: Object, R>(
        &self,
        url: Url,
        mut visit: impl FnMut(T) -> ControlFlow<R>,
    ) -> Called<Walked<R>> {
        let mut seen = BTreeSet::new();
        let mut next = url.clone();
        for _ in 0..PAGES_MAX {
            let page: Page<T> = self.page(next).await?;
            let end = if page.has_more == Some(true) { Walked::Cut } else { Walked::Whole };
            if page.last_id.as_ref().is_some_and(|id| seen.contains(id)) {
                return Ok(end);
            }
            for item in page.items {
                if let ControlFlow::Break(found) = visit(item) {
                    return Ok(Walked::Stopped(found));
                }
            }
            let Some(last) = page.last_id.filter(|_| page.has_more != Some(false)) else { return Ok(end) };
            next = with_query(url.clone(), "after", &last);
            seen.insert(last);
        }
        Ok(Walked::Cut)
    }
}

/// Reads a page; some servers send the bare array.
pub(super) fn read<T: Object>(text: &str) -> Option<Page<T>> {
    let members = Members::of(text);
    let data = members.as_ref().map_or(Some(text), |members| members.get("data"))?;
    let items: Vec<&RawValue> = serde_json::from_str(data).ok()?;
    let items: Vec<T> = items.into_iter().filter_map(|item| T::read(item.get())).collect();
    let members = members.unwrap_or_default();
    Some(Page {
        has_more: members.flag("has_more"),
        last_id: items
            .last()
            .and_then(|item| item.id().map(str::to_owned))
            .or_else(|| members.string("last_id").map(std::borrow::Cow::into_owned)),
        items,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::RemoteFile;
    use crate::provider::testing::{Listener, http, provider};

    /// Walks along the pages that a server sends; gives the ids it saw, the end, and how often it asked.
    async fn walked(pages: &[&str]) -> (Vec<String>, Called<Walked<()>>, usize) {
        let server =
            Listener::with_replies(pages.iter().map(|page| http("200 OK", "", page)).collect()).await;
        let mut ids = Vec::new();
        let provider = provider(&server);
        let url = provider.access().api.resource("/files");
        let end = provider
            .walk(url, |file: RemoteFile| {
                ids.push(file.id);
                ControlFlow::Continue(())
            })
            .await;
        (ids, end, server.requests().len())
    }

    #[tokio::test]
    async fn a_walk_sees_every_page_once_and_asks_behind_the_last_item() {
        let server = Listener::with_replies(vec![
            http("200 OK", "", r#"{"data":[{"id":"a"},{"id":"b c"}],"has_more":true}"#),
            http("200 OK", "", r#"{"data":[{"id":"d"}],"has_more":false}"#),
        ])
        .await;
        let provider = provider(&server);
        let url = with_query(provider.access().api.resource("/files"), "purpose", "batch");
        let end = provider.walk(url, |_: RemoteFile| ControlFlow::<()>::Continue(())).await.unwrap();
        assert_eq!(end, Walked::Whole);
        let asked = server.requests();
        assert!(asked[0].starts_with("GET /v1/files?purpose=batch HTTP"), "{}", asked[0]);
        assert!(asked[1].starts_with("GET /v1/files?purpose=batch&after=b+c HTTP"), "{}", asked[1]);
    }

    #[tokio::test]
    async fn servers_that_know_nothing_of_pages_are_asked_twice_at_most() {
        for (page, expected, asked, end) in [
            (r#"{"object":"list","data":[{"id":"a"},{"id":"b"}]}"#, 2, 2, Walked::Whole),
            (r#"{"data":[{"id":"a"}],"has_more":true}"#, 1, 2, Walked::Cut),
            (r#"{"data":[{"id":"a"}],"has_more":false}"#, 1, 1, Walked::Whole),
            (r#"{"data":[]}"#, 0, 1, Walked::Whole),
            (r#"[{"id":"a"}]"#, 1, 2, Walked::Whole),
            (r#"{"data":[{"id":7},null,{"id":"a"}],"has_more":false}"#, 1, 1, Walked::Whole),
        ] {
            let (ids, found, requests) = walked(&[page]).await;
            assert_eq!((ids.len(), requests, found.unwrap()), (expected, asked, end), "{page}");
        }
    }

    #[tokio::test]
    async fn a_server_that_always_has_more_is_left_after_a_hundred_pages() {
        let pages: Vec<String> =
            (0..200).map(|n| format!(r#"{{"data":[{{"id":"{n}"}}],"has_more":true}}"#)).collect();
        let pages: Vec<&str> = pages.iter().map(String::as_str).collect();
        let (ids, end, requests) = walked(&pages).await;
        assert_eq!((ids.len(), requests), (100, 100));
        let error = *end.unwrap().found("files").unwrap_err();
        assert!(
            matches!(&error, crate::domain::Outcome::Unanswerable(error) if error.code == "list_too_long"),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn what_is_no_list_is_no_empty_list() {
        for page in [r#"{"object":"list"}"#, r#"{"data":{}}"#, r#"{"data":null}"#, "<html>", ""] {
            let (_, end, _) = walked(&[page]).await;
            assert!(matches!(*end.unwrap_err(), crate::domain::Outcome::Failed(_)), "{page}");
        }
    }
}
