//! From method and path to what is asked for.

use axum::http::{HeaderMap, Method};

use super::objects;
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
    Object(Box<objects::Call>),
}

impl<'a> Call<'a> {
    /// Reads a request, or says why it can't be answered.
    pub(super) fn read(request: &Request<'a>, file_bytes_max: usize) -> Result<Self, Refusal> {
        let method = request.method;
        if let Ok(endpoint) = request.path.parse::<Endpoint>() {
            if method != Method::POST {
                return Err(Refusal::wrong_method(method.as_str(), request.path, "POST"));
            }
            return question::read(endpoint, request.body).map(Self::Ask);
        }
        match objects::Call::read(request, file_bytes_max) {
            Some(call) => Ok(Self::Object(Box::new(call?))),
            None => Err(Refusal::unknown_url(method.as_str(), request.path)),
        }
    }
}

impl<'a> Request<'a> {
    /// The path as an endpoint is named without its `/v1`.
    pub(super) fn below_v1(&self) -> &'a str {
        self.path.strip_prefix("/v1").unwrap_or(self.path)
    }

    /// Whether it brings a file or a part of one, whose bound is another than that of a question.
    pub(super) fn brings_file(&self) -> bool {
        let path = self.below_v1();
        path == "/files" || (path.starts_with("/uploads/") && path.ends_with("/parts"))
    }
}
