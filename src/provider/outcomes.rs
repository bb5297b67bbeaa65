//! What an error reply means, as data: status, `error.code`, `error.type` and words, to a [`Class`].
//!
//! # Operation
//!
//! [`ROWS`] is a table, and its first row that matches holds. `error.code` goes before `error.type`, and both before
//! the status, because one status can mean "wait a second" and "your money is used up". An error that no row knows is
//! judged carefully: an unknown 4xx is the request's fault, and is not asked again; an unknown 5xx may go away, and may
//! have been paid for.
//!
//! Sources: OpenAI's error-code page of 2026 and its SDK; what else is named is the server that was seen to say so. The
//! tests hold a reply of each.

use std::ops::RangeInclusive;

use crate::domain::{PauseReason, Shortage};
use crate::provider::error_body::ErrorBody;

/// What becomes of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// This request will be refused again.
    Refused,
    /// Certainly not executed; to be asked again later.
    Throttled(Shortage),
    /// May go right the next time.
    Failed { maybe_paid: bool },
    /// Not the request is refused but the key, the money or the model.
    Blocked(PauseReason),
}

pub(super) const REFUSED: Class = Class::Refused;
pub(super) const REQUESTS: Class = Class::Throttled(Shortage::Requests);
pub(super) const TOKENS: Class = Class::Throttled(Shortage::Tokens);
pub(super) const FULL: Class = Class::Throttled(Shortage::Capacity);
pub(super) const LATER: Class = Class::Throttled(Shortage::Unknown);
pub(super) const FAILED: Class = Class::Failed { maybe_paid: false };
pub(super) const MAYBE_PAID: Class = Class::Failed { maybe_paid: true };
pub(super) const QUOTA: Class = Class::Blocked(PauseReason::Quota);
pub(super) const AUTH: Class = Class::Blocked(PauseReason::Auth);
pub(super) const MODEL: Class = Class::Blocked(PauseReason::Model);

/// What the table says of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) class: Class,
    /// Nothing but its status was known.
    pub(super) by_status_alone: bool,
}

/// Looks an error up. A 2xx that holds an unknown one is a failed attempt that was most likely paid for.
pub(super) fn look_up(status: u16, error: &ErrorBody) -> Meaning {
    match ROWS.iter().find(|row| row.matches(status, error)) {
        Some(row) => Meaning { class: row.class, by_status_alone: matches!(row.mark, Mark::None) },
        None => Meaning { class: if status < 300 { MAYBE_PAID } else { REFUSED }, by_status_alone: true },
    }
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    status: RangeInclusive<u16>,
    mark: Mark,
    class: Class,
}

/// What a row looks for beside the status. Case does not count, families aside.
#[derive(Clone, Copy, Debug)]
enum Mark {
    Code(&'static str),
    /// What the code begins with: a family of codes.
    CodeStart(&'static str),
    Type(&'static str),
    /// What the type ends in: a family of types.
    TypeEnd(&'static str),
    /// Words that the message holds, all of them.
    Words(&'static [&'static str]),
    None,
}

const ANY: RangeInclusive<u16> = 200..=999;

const fn row(status: RangeInclusive<u16>, mark: Mark, class: Class) -> Row {
    Row { status, mark, class }
}

const fn code(code: &'static str, class: Class) -> Row {
    row(ANY, Mark::Code(code), class)
}

const fn kind(kind: &'static str, class: Class) -> Row {
    row(ANY, Mark::Type(kind), class)
}

const fn words(status: u16, words: &'static [&'static str], class: Class) -> Row {
    row(status..=status, Mark::Words(words), class)
}

const fn status(status: u16, class: Class) -> Row {
    row(status..=status, Mark::None, class)
}

/// Every error that means more than its status says, then the statuses.
static ROWS: &[Row] = &[
    // Exceptions from the codes below: these will never succeed, whatever their code promises.
    words(429, &["request too large"], REFUSED), // the limit is smaller than the request
    words(500, &["context size has been exceeded"], REFUSED), // llama.cpp
    // Money.
    code("insufficient_quota", QUOTA),
    code("credit_balance_exhausted", QUOTA),
    code("organization_spend_limit_exceeded", QUOTA),
    code("project_spend_limit_exceeded", QUOTA),
    code("organization_usage_limit_exceeded", QUOTA),
    code("billing_hard_limit_reached", QUOTA), // with status 400
    code("billing_not_active", QUOTA),
    kind("insufficient_quota", QUOTA),
    kind("budget_exceeded", QUOTA), // LiteLLM
    // The key.
    code("invalid_api_key", AUTH),
    code("unsupported_country_region_territory", AUTH),
    kind("no_db_connection", AUTH), // LiteLLM, 400: a key it can't look up
    code("no_db_connection", AUTH), // the same, in other releases
    // The model.
    code("model_not_found", MODEL),                         // with 404, 403, 400
    code("DeploymentNotFound", MODEL),                      // Azure
    row(ANY, Mark::TypeEnd("_model_access_denied"), MODEL), // LiteLLM, 401: of a key, a team, a user
    // The request. The fourth to the seventh, and families, also stand in a 200 of /responses whose status is `failed`.
    code("context_length_exceeded", REFUSED),
    code("content_policy_violation", REFUSED),
    code("content_filter", REFUSED), // Azure
    code("invalid_prompt", REFUSED),
    code("bio_policy", REFUSED),
    code("data_residency_mismatch", REFUSED),
    code("moderation_blocked", REFUSED),
    row(200..=499, Mark::CodeStart("invalid_image"), REFUSED),
    row(200..=499, Mark::CodeStart("image_"), REFUSED),
    kind("exceed_context_size_error", REFUSED), // llama.cpp
    kind("not_supported_error", REFUSED),       // llama.cpp
    // Room.
    code("slow_down", FULL),
    code("server_is_overloaded", FULL),
    code("server_overloaded", FULL),
    code("NoCapacity", FULL),       // Azure
    kind("overloaded_error", FULL), // Anthropic
    kind("service_unavailable_error", FULL),
    words(429, &["resource unavailable"], FULL),     // OpenAI: flex
    words(429, &["overloaded"], FULL),               // OpenAI of old, TGI
    words(429, &["no deployments available"], FULL), // LiteLLM: all of them rest
    words(429, &["max_parallel_requests"], FULL),    // LiteLLM
    words(500, &["overloaded"], FULL),               // OpenAI of old
    // Rates. The type says which, then the message, and the code that it is one at all.
    row(429..=429, Mark::Type("tokens"), TOKENS),
    row(429..=429, Mark::Type("requests"), REQUESTS),
    words(429, &["tokens per"], TOKENS),             // OpenAI
    words(429, &["token rate limit"], TOKENS),       // Azure
    words(429, &["limit type: tokens"], TOKENS),     // LiteLLM
    words(429, &["requests per"], REQUESTS),         // OpenAI
    words(429, &["call rate limit"], REQUESTS),      // Azure
    words(429, &["limit type: requests"], REQUESTS), // LiteLLM
    code("rate_limit_exceeded", REQUESTS),
    // A server that can still say that it failed normally bills nothing; a proxy's own 500 (below) knows nothing.
    row(200..=200, Mark::Code("server_error"), MAYBE_PAID), // /responses, which began and failed
    row(500..=500, Mark::Code("server_error"), FAILED),
    row(500..=500, Mark::Type("server_error"), FAILED),
    row(500..=500, Mark::Type("internal_server_error"), FAILED), // LiteLLM
    row(500..=500, Mark::Type("InternalServerError"), FAILED),   // vLLM
    row(500..=500, Mark::Code("InternalServerError"), FAILED),   // Azure
    row(500..=500, Mark::Type("api_error"), FAILED),             // Ollama
    // Messages that narrow a status.
    words(400, &["invalid model name"], MODEL),          // LiteLLM
    words(400, &["api key not valid"], AUTH),            // Google
    words(400, &["incorrect api key"], AUTH),            // xAI
    words(403, &["flagged"], REFUSED),                   // OpenRouter: the prompt, not the key
    words(403, &["missing scopes"], AUTH),               // OpenAI: `model.request` is a scope, and no model
    words(403, &["quota"], QUOTA),                       // Azure's front: the calls of a month
    words(403, &["access to model"], MODEL),             // OpenAI
    words(403, &["not allowed", "this model"], MODEL),   // OpenAI
    words(404, &["model", "supported in the"], REFUSED), // OpenAI: this model, but not at this endpoint
    words(404, &["model", "supported in v1"], REFUSED),  // OpenAI: the same
    words(404, &["model", "not exist"], MODEL),          // OpenAI, vLLM
    words(404, &["model", "not found"], MODEL),          // Ollama, llama.cpp
    // Statuses.
    row(300..=399, Mark::None, REFUSED), // followed, a redirect would send prompt and key elsewhere
    status(401, AUTH),
    status(402, QUOTA),
    status(403, AUTH),
    status(407, AUTH), // a proxy of ours wants to know who asks
    status(408, MAYBE_PAID),
    status(409, FAILED),
    status(425, FAILED),
    status(429, LATER),
    status(498, FULL),       // Groq: flex has no room
    status(499, MAYBE_PAID), // Ollama, nginx: the server believes that we hung up
    row(400..=499, Mark::None, REFUSED),
    status(501, REFUSED),
    status(503, FULL), // overloaded, or llama.cpp still loading its model
    status(529, FULL), // overloaded, in Anthropic's words
    row(500..=599, Mark::None, MAYBE_PAID),
];

impl Row {
    fn matches(&self, status: u16, error: &ErrorBody) -> bool {
        self.status.contains(&status)
            && match self.mark {
                Mark::Code(code) => error.code.eq_ignore_ascii_case(code),
                Mark::CodeStart(start) => error.code.starts_with(start),
                Mark::Type(kind) => error.kind.eq_ignore_ascii_case(kind),
                Mark::TypeEnd(end) => error.kind.ends_with(end),
                Mark::Words(words) => {
                    let message = error.message.to_ascii_lowercase();
                    words.iter().all(|word| message.contains(word))
                }
                Mark::None => true,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What servers are seen to send, and what each means. Every row of the table has one here.
    const SERVERS: [&[(u16, &str, Class)]; 7] = [OPENAI, VLLM, LLAMA_CPP, OLLAMA, LITELLM, AZURE, OTHERS];

    /// OpenAI, its old codes and its new ones.
    const OPENAI: &[(u16, &str, Class)] = &[
        (
            400,
            r#"{"error":{"message":"Unknown parameter","type":"invalid_request_error","param":"x","code":"unknown_parameter"}}"#,
            REFUSED,
        ),
        (
            400,
            r#"{"error":{"message":"too long","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
            REFUSED,
        ),
        (
            400,
            r#"{"error":{"message":"no","type":"image_generation_user_error","code":"content_policy_violation"}}"#,
            REFUSED,
        ),
        (
            400,
            r#"{"error":{"message":"no","type":"image_generation_user_error","code":"moderation_blocked"}}"#,
            REFUSED,
        ),
        (400, r#"{"error":{"message":"no","code":"invalid_prompt"}}"#, REFUSED),
        (400, r#"{"error":{"message":"no","code":"bio_policy"}}"#, REFUSED),
        (400, r#"{"error":{"message":"no","code":"data_residency_mismatch"}}"#, REFUSED),
        (400, r#"{"error":{"message":"no","code":"invalid_image_format"}}"#, REFUSED),
        (400, r#"{"error":{"message":"no","code":"image_too_large"}}"#, REFUSED),
        (
            400,
            r#"{"error":{"message":"limit","type":"invalid_request_error","code":"billing_hard_limit_reached"}}"#,
            QUOTA,
        ),
        (
            400,
            r#"{"error":{"message":"Invalid value: 'many'. Supported values are: 1.","type":"invalid_request_error","param":"n","code":"invalid_value"}}"#,
            REFUSED,
        ),
        (
            400,
            r#"{"error":{"message":"Invalid 'input': string too long.","type":"invalid_request_error","param":"input","code":"string_above_max_length"}}"#,
            REFUSED,
        ),
        (
            400,
            r#"{"error":{"message":"Invalid service_tier argument","type":"invalid_request_error","param":"service_tier","code":null}}"#,
            REFUSED,
        ),
        (
            401,
            r#"{"error":{"message":"Incorrect API key provided","type":"invalid_request_error","code":"invalid_api_key"}}"#,
            AUTH,
        ),
        (
            401,
            r#"{"error":{"message":"You must be a member of an organization","type":"invalid_request_error","code":null}}"#,
            AUTH,
        ),
        (
            401,
            r#"{"error":{"message":"Your IP is not authorized to access this resource.","type":"invalid_request_error","param":null,"code":"ip_not_authorized"}}"#,
            AUTH,
        ),
        (
            403,
            r#"{"error":{"message":"Country not supported","code":"unsupported_country_region_territory"}}"#,
            AUTH,
        ),
        (
            403,
            r#"{"error":{"message":"Project `p` does not have access to model `m`","code":"model_not_found"}}"#,
            MODEL,
        ),
        (
            403,
            r#"{"error":{"message":"Project `p` does not have access to model `m`","type":"invalid_request_error","param":null,"code":null}}"#,
            MODEL,
        ),
        (
            403,
            r#"{"error":{"message":"You are not allowed to sample from this model","type":"invalid_request_error","param":null,"code":null}}"#,
            MODEL,
        ),
        (
            403,
            r#"{"error":{"message":"You have insufficient permissions for this operation. Missing scopes: model.request.","type":"server_error","param":null,"code":null}}"#,
            AUTH,
        ),
        (
            404,
            r#"{"error":{"message":"The model `m` does not exist","type":"invalid_request_error","code":"model_not_found"}}"#,
            MODEL,
        ),
        (
            404,
            r#"{"error":{"message":"The model `m` does not exist or you do not have access to it.","code":null}}"#,
            MODEL,
        ),
        (
            404,
            r#"{"error":{"message":"This is a chat model and not supported in the v1/completions endpoint.","param":"model","code":null}}"#,
            REFUSED,
        ),
        (
            404,
            r#"{"error":{"message":"This model is only supported in v1/responses and not in v1/chat/completions.","code":null}}"#,
            REFUSED,
        ),
        (
            404,
            r#"{"error":{"message":"No such File object: file-1","type":"invalid_request_error","param":"id","code":null}}"#,
            REFUSED,
        ),
        (408, r#"{"error":{"message":"timeout","code":"timeout"}}"#, MAYBE_PAID),
        (409, r#"{"error":{"message":"conflict"}}"#, FAILED),
        (413, "", REFUSED),
        (422, r#"{"error":{"message":"no"}}"#, REFUSED),
        (425, "", FAILED),
        (
            429,
            r#"{"error":{"message":"Rate limit reached","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#,
            TOKENS,
        ),
        (
            429,
            r#"{"error":{"message":"Request too large for m on tokens per min (TPM): Limit 10, Requested 12.","type":"tokens","code":"rate_limit_exceeded"}}"#,
            REFUSED,
        ),
        (
            429,
            r#"{"error":{"message":"traffic rose too fast","type":"rate_limit_error","code":"slow_down"}}"#,
            FULL,
        ),
        (429, r#"{"error":{"message":"Resource unavailable"}}"#, FULL),
        (
            429,
            r#"{"error":{"message":"no money","type":"insufficient_quota","code":"insufficient_quota"}}"#,
            QUOTA,
        ),
        (429, r#"{"error":{"message":"no money","type":"insufficient_quota","code":null}}"#, QUOTA),
        (429, r#"{"error":{"message":"no money","type":"x","code":"credit_balance_exhausted"}}"#, QUOTA),
        (
            429,
            r#"{"error":{"message":"no money","type":"x","code":"organization_spend_limit_exceeded"}}"#,
            QUOTA,
        ),
        (429, r#"{"error":{"message":"no money","type":"x","code":"project_spend_limit_exceeded"}}"#, QUOTA),
        (
            429,
            r#"{"error":{"message":"no money","type":"x","code":"organization_usage_limit_exceeded"}}"#,
            QUOTA,
        ),
        (
            429,
            r#"{"error":{"message":"no money","type":"billing_not_active","code":"billing_not_active"}}"#,
            QUOTA,
        ),
        (
            429,
            r#"{"error":{"message":"Rate limit reached for m in organization o on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s.","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#,
            REQUESTS,
        ),
        (
            429,
            r#"{"error":{"message":"Rate limit reached for m in organization o on tokens per min (TPM): Limit 40000, Used 39999, Requested 24.","type":null,"param":null,"code":"rate_limit_exceeded"}}"#,
            TOKENS,
        ),
        (
            429,
            r#"{"error":{"message":"Rate limit reached for m on requests per day (RPD): Limit 200, Used 200, Requested 1.","type":"rate_limit_error","param":null,"code":null}}"#,
            REQUESTS,
        ),
        (
            429,
            r#"{"error":{"message":"Rate limit reached","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}"#,
            REQUESTS,
        ),
        (
            429,
            r#"{"error":{"message":"That model is currently overloaded with other requests.","type":"server_error","param":null,"code":null}}"#,
            FULL,
        ),
        (
            500,
            r#"{"error":{"message":"The server had an error","type":"server_error","param":null,"code":null}}"#,
            FAILED,
        ),
        (500, r#"{"error":{"message":"overloaded","type":"service_unavailable_error","code":null}}"#, FULL),
        (500, r#"{"error":{"message":"overloaded","type":"server_error","code":"server_overloaded"}}"#, FULL),
        (
            500,
            r#"{"error":{"message":"The server is currently overloaded with other requests. Sorry about that!","type":"server_error","param":null,"code":null}}"#,
            FULL,
        ),
        (
            500,
            r#"{"error":{"message":"An error occurred while processing your request.","type":null,"param":null,"code":"server_error"}}"#,
            FAILED,
        ),
        (
            503,
            r#"{"error":{"message":"overloaded","type":"service_unavailable_error","code":"server_is_overloaded"}}"#,
            FULL,
        ),
        (503, "Service Unavailable", FULL),
        (
            503,
            r#"{"error":{"message":"The engine is currently overloaded, please try again later","type":"server_error","param":null,"code":null}}"#,
            FULL,
        ),
        (
            503,
            r#"{"error":{"message":"Please slow down","type":"service_unavailable_error","param":null,"code":"slow_down"}}"#,
            FULL,
        ),
    ];

    /// vLLM, before 2025 and after.
    const VLLM: &[(u16, &str, Class)] = &[
        (
            400,
            r#"{"error":{"message":"maximum context length is 8","type":"BadRequestError","param":"input_tokens","code":400}}"#,
            REFUSED,
        ),
        (
            400,
            r#"{"object":"error","message":"no","type":"BadRequestError","param":null,"code":400}"#,
            REFUSED,
        ),
        (401, r#"{"error":"Unauthorized"}"#, AUTH),
        (
            404,
            r#"{"object":"error","message":"The model `m` does not exist.","type":"NotFoundError","code":404}"#,
            MODEL,
        ),
        (
            404,
            r#"{"error":{"message":"The model `m` does not exist.","type":"NotFoundError","param":"model","code":404}}"#,
            MODEL,
        ),
        (422, r#"{"detail":[{"type":"missing","loc":["body","messages"],"msg":"Field required"}]}"#, REFUSED),
        (500, r#"{"error":{"message":"","type":"InternalServerError","param":null,"code":500}}"#, FAILED),
        (
            503,
            r#"{"error":{"message":"server overloaded","type":"ServiceUnavailableError","param":null,"code":503}}"#,
            FULL,
        ),
    ];

    /// llama.cpp's server.
    const LLAMA_CPP: &[(u16, &str, Class)] = &[
        (
            400,
            r#"{"error":{"code":400,"message":"exceeds","type":"exceed_context_size_error","n_prompt_tokens":9,"n_ctx":8}}"#,
            REFUSED,
        ),
        (401, r#"{"error":{"code":401,"message":"Invalid API Key","type":"authentication_error"}}"#, AUTH),
        (403, r#"{"error":{"code":403,"message":"no","type":"permission_error"}}"#, AUTH),
        (404, r#"{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}"#, REFUSED),
        (
            500,
            r#"{"error":{"code":500,"message":"Context size has been exceeded.","type":"server_error"}}"#,
            REFUSED,
        ),
        (
            500,
            r#"{"error":{"code":500,"message":"failed to decode the batch","type":"server_error"}}"#,
            FAILED,
        ),
        (501, r#"{"error":{"code":501,"message":"no embeddings","type":"not_supported_error"}}"#, REFUSED),
        (501, "", REFUSED),
        (503, r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#, FULL),
    ];

    /// Ollama.
    const OLLAMA: &[(u16, &str, Class)] = &[
        (
            400,
            r#"{"error":{"message":"invalid character","type":"invalid_request_error","param":null,"code":null}}"#,
            REFUSED,
        ),
        (
            404,
            r#"{"error":{"message":"model \"m\" not found, try pulling it first","type":"not_found_error","param":null,"code":null}}"#,
            MODEL,
        ),
        (404, r#"{"error":"model 'm' not found"}"#, MODEL),
        (499, "", MAYBE_PAID),
        (500, r#"{"error":{"message":"runner died","type":"api_error","param":null,"code":null}}"#, FAILED),
        (
            503,
            r#"{"error":{"message":"server busy, please try again.  maximum pending requests exceeded","type":"api_error","code":null}}"#,
            FULL,
        ),
    ];

    /// LiteLLM's proxy.
    const LITELLM: &[(u16, &str, Class)] = &[
        (
            400,
            r#"{"error":{"message":"/chat/completions: Invalid model name passed in model=m","type":"None","code":"400"}}"#,
            MODEL,
        ),
        (
            400,
            r#"{"error":{"message":"Budget has been exceeded!","type":"budget_exceeded","code":"400"}}"#,
            QUOTA,
        ),
        (400, r#"{"error":{"message":"No connected db.","type":"no_db_connection","code":"400"}}"#, AUTH),
        (400, r#"{"error":{"message":"No connected db.","type":"x","code":"no_db_connection"}}"#, AUTH),
        (
            400,
            r#"{"error":{"message":"litellm.ContextWindowExceededError: …","type":"invalid_request_error","code":"400"}}"#,
            REFUSED,
        ),
        (
            401,
            r#"{"error":{"message":"key not allowed to access model. This key can only access models=['a'].","type":"key_model_access_denied","param":"model","code":"401"}}"#,
            MODEL,
        ),
        (
            401,
            r#"{"error":{"message":"Authentication Error, Invalid proxy server token passed.","type":"auth_error","param":"None","code":"401"}}"#,
            AUTH,
        ),
        (404, r#"{"detail":"Not Found"}"#, REFUSED),
        (
            408,
            r#"{"error":{"message":"litellm.Timeout: APITimeoutError","type":null,"param":null,"code":"408"}}"#,
            MAYBE_PAID,
        ),
        (
            429,
            r#"{"error":{"message":"litellm.RateLimitError: …","type":"throttling_error","param":null,"code":"429"}}"#,
            LATER,
        ),
        (
            429,
            r#"{"error":{"message":"Rate limit exceeded for api_key: k. Limit type: requests. Current limit: 3, Remaining: 0.","type":"throttling_error","param":null,"code":"429"}}"#,
            REQUESTS,
        ),
        (
            429,
            r#"{"error":{"message":"Rate limit exceeded for api_key: k. Limit type: tokens. Current limit: 300, Remaining: 0.","type":"throttling_error","param":null,"code":"429"}}"#,
            TOKENS,
        ),
        (
            429,
            r#"{"error":{"message":"Rate limit exceeded for api_key: k. Limit type: max_parallel_requests. Current limit: 1.","type":"throttling_error","param":null,"code":"429"}}"#,
            FULL,
        ),
        (
            429,
            r#"{"error":{"message":"No deployments available for selected model, Try again in 5 seconds.","type":"throttling_error","param":null,"code":"429"}}"#,
            FULL,
        ),
        (
            500,
            r#"{"error":{"message":"Connection error","type":"internal_server_error","code":"500"}}"#,
            FAILED,
        ),
        (500, "Internal Server Error", MAYBE_PAID),
    ];

    /// Azure OpenAI, and the front before it.
    const AZURE: &[(u16, &str, Class)] = &[
        (
            400,
            r#"{"error":{"code":"OperationNotSupported","message":"The operation does not work with the model"}}"#,
            REFUSED,
        ),
        (
            400,
            r#"{"error":{"code":"content_filter","message":"filtered","innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
            REFUSED,
        ),
        (400, r#"{"errors":{"data":[{"code":"model_not_found","message":"no"}],"object":"list"}}"#, MODEL),
        (
            401,
            r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}"#,
            AUTH,
        ),
        (
            401,
            r#"{"statusCode":401,"message":"Unauthorized. Access token is missing, invalid or expired."}"#,
            AUTH,
        ),
        (
            403,
            r#"{"error":{"code":"AccessDenied","message":"Access denied due to Virtual Network/Firewall rules."}}"#,
            AUTH,
        ),
        (
            403,
            r#"{"statusCode":403,"message":"Out of call volume quota. Quota will be replenished in 10:00:00."}"#,
            QUOTA,
        ),
        (404, r#"{"error":{"code":"404","message":"Resource not found"}}"#, REFUSED),
        (
            404,
            r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment does not exist."}}"#,
            MODEL,
        ),
        (408, r#"{"error":{"code":"Timeout","message":"The operation was timeout."}}"#, MAYBE_PAID),
        (429, r#"{"error":{"code":"429","message":"Please retry after 86400 seconds."}}"#, LATER),
        (
            429,
            r#"{"error":{"code":"429","message":"Requests to the ChatCompletions_Create Operation have exceeded token rate limit of your current pricing tier."}}"#,
            TOKENS,
        ),
        (
            429,
            r#"{"error":{"code":"429","message":"Requests to the ChatCompletions_Create Operation have exceeded call rate limit of your current pricing tier."}}"#,
            REQUESTS,
        ),
        (
            429,
            r#"{"error":{"code":"NoCapacity","message":"The system is currently experiencing high demand."}}"#,
            FULL,
        ),
        (
            500,
            r#"{"error":{"code":"InternalServerError","message":"The server had an error processing your request."}}"#,
            FAILED,
        ),
    ];

    /// Other vendors, and the proxies before them.
    const OTHERS: &[(u16, &str, Class)] = &[
        (302, "", REFUSED),
        (
            400,
            r#"[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT"}}]"#,
            AUTH,
        ),
        (
            400,
            r#"{"code":"Client specified an invalid argument","error":"Incorrect API key provided: x."}"#,
            AUTH,
        ),
        (
            402,
            r#"{"error":{"message":"Insufficient Balance","type":"unknown_error","code":"invalid_request_error"}}"#,
            QUOTA,
        ),
        (403, r#"{"error":{"message":"Your input was flagged","code":403}}"#, REFUSED),
        (403, "<html>Forbidden</html>", AUTH),
        (404, "<html>404 page not found</html>", REFUSED),
        (404, r#"{"detail":"Not Found"}"#, REFUSED),
        (405, "<html>405 Not Allowed</html>", REFUSED),
        (407, "<html>Proxy Authentication Required</html>", AUTH),
        (413, "<html>413 Request Entity Too Large</html>", REFUSED),
        (418, "", REFUSED),
        (429, "", LATER),
        (429, "<html>Too Many Requests</html>", LATER),
        (429, r#"{"detail":"Too many requests"}"#, LATER),
        (429, r#"{"error":"Model is overloaded","error_type":"overloaded"}"#, FULL),
        (498, r#"{"error":{"message":"Flex tier capacity exceeded","type":"capacity_exceeded"}}"#, FULL),
        (500, "Internal Server Error", MAYBE_PAID),
        (502, "<html>Bad Gateway</html>", MAYBE_PAID),
        (503, "", FULL),
        (503, "<html>503 Service Temporarily Unavailable</html>", FULL),
        (504, "", MAYBE_PAID),
        (520, "", MAYBE_PAID),
        (529, r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#, FULL),
        (529, "", FULL),
        (600, "", REFUSED),
    ];

    #[test]
    fn every_reply_has_its_class() {
        for (status, body, expected) in SERVERS.into_iter().flatten() {
            let found = look_up(*status, &ErrorBody::read(body));
            assert_eq!(found.class, *expected, "{status} {body}");
        }
    }

    #[test]
    fn every_row_of_the_table_is_there_for_a_reply() {
        let in_200 = (200, r#"{"error":{"code":"server_error","message":"x"}}"#);
        let replies = SERVERS.into_iter().flatten().map(|(status, body, _)| (*status, *body)).chain([in_200]);
        let found: Vec<&Row> = replies
            .filter_map(|(status, body)| {
                let error = ErrorBody::read(body);
                ROWS.iter().find(|row| row.matches(status, &error))
            })
            .collect();
        for row in ROWS {
            assert!(found.iter().any(|used| std::ptr::eq(*used, row)), "no reply needs {row:?}");
        }
    }

    #[test]
    fn what_no_row_knows_is_refused_below_500_and_may_be_paid_above() {
        let something = ErrorBody::read(r#"{"error":{"message":"?","type":"new_error","code":"brand_new"}}"#);
        let nothing = ErrorBody::default();
        for status in 400..1000 {
            for error in [&something, &nothing] {
                let Meaning { class, by_status_alone } = look_up(status, error);
                assert!(by_status_alone);
                let expected = match status {
                    401 | 403 | 407 => AUTH,
                    402 => QUOTA,
                    409 | 425 => FAILED,
                    429 => LATER,
                    498 | 503 | 529 => FULL,
                    501 => REFUSED,
                    408 | 499 | 500..=599 => MAYBE_PAID,
                    _ => REFUSED,
                };
                assert_eq!(class, expected, "{status}");
            }
        }
        assert_eq!(look_up(200, &something), Meaning { class: MAYBE_PAID, by_status_alone: true });
    }
}
