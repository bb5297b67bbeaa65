//! From method and path to what is asked for.

use std::borrow::Cow;

use axum::http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;

use super::question::{self, Question};
use super::refusal::Refusal;
use crate::domain::Endpoint;

/// One request as it came in, whole.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: &'a Method,
    /// With or without `/v1`.
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    /// `host:port` under which the asker knows this server: stands in urls.
    pub authority: &'a str,
}

/// What is asked for.
#[derive(Debug)]
pub(super) enum Call<'a> {
    Ask(Question<'a>),
    ListModels,
    Model(Cow<'a, str>),
}

impl<'a> Call<'a> {
    /// Reads a request, or says why it can't be answered. With an empty list every model is known.
    pub(super) fn read(request: &Request<'a>, models: &[String]) -> Result<Self, Refusal> {
        let method = request.method;
        let only = |allow: Method, name: &'static str| {
            if method == allow {
                Ok(())
            } else {
                Err(Refusal::wrong_method(method.as_str(), request.path, name))
            }
        };
        if let Ok(endpoint) = request.path.parse::<Endpoint>() {
            only(Method::POST, "POST")?;
            let question = question::read(endpoint, request.body)?;
            if let Some(model) = &question.model {
                know(models, model)?;
            }
            return Ok(Call::Ask(question));
        }
        let path = request.below_v1();
        if path == "/models" {
            only(Method::GET, "GET")?;
            return Ok(Call::ListModels);
        }
        let Some(id) = path.strip_prefix("/models/").filter(|id| !id.is_empty()) else {
            return Err(Refusal::unknown_url(method.as_str(), request.path));
        };
        only(Method::GET, "GET")?;
        let id = percent_decode_str(id).decode_utf8_lossy();
        know(models, &id)?;
        Ok(Call::Model(id))
    }
}

impl<'a> Request<'a> {
    /// The path as an endpoint is named without its `/v1`.
    pub(super) fn below_v1(&self) -> &'a str {
        self.path.strip_prefix("/v1").unwrap_or(self.path)
    }
}

fn know(models: &[String], model: &str) -> Result<(), Refusal> {
    if models.is_empty() || models.iter().any(|known| known == model) {
        return Ok(());
    }
    Err(Refusal::model_not_found(model))
}
