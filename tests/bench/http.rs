//! The benchmark's requests, byte for byte, and the connection that sends them one at a time.

use std::net::SocketAddr;

use greenroom_test_support::http::{self, Reply};
use serde_json::{Value, json};

use crate::Result;

/// A keep-alive connection.
pub struct Connection(http::Connection);

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> Result<Self> {
        Ok(Self(http::Connection::open(address)?))
    }

    /// Sends a request. Returns the response's body, if its status is 2xx.
    pub fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        accepted(self.0.exchange(request)?)
    }

    /// Sends a GET. Returns the response as JSON.
    pub fn get(&mut self, path: &str) -> Result<Value> {
        let body = self.exchange(&request("GET", path, &Value::Null))?;
        Ok(serde_json::from_slice(&body).unwrap_or_default())
    }

    /// Runs a turn to its end. Returns its task.
    pub fn turn(&mut self, group: &str, prompt: &str) -> Result<Value> {
        let task: Value = serde_json::from_slice(&self.exchange(&turn(group, prompt, 60))?)?;
        if task["ended_at"].is_null() {
            return Err(format!("a turn did not end: {task}").into());
        }
        Ok(task)
    }
}

/// Returns the body of a reply.
///
/// # Errors
///
/// A status other than 2xx.
pub fn accepted(reply: Reply) -> Result<Vec<u8>> {
    if !(200..300).contains(&reply.status) {
        return Err(format!("refused: {} {}", reply.status, reply.text()).into());
    }
    Ok(reply.body)
}

/// Returns the request for a turn; its answer comes when the turn ended, or after `wait` seconds.
pub fn turn(group: &str, prompt: &str, wait: u32) -> Vec<u8> {
    let path = format!("/v1/groups/{group}/turns?wait={wait}");
    request("POST", &path, &json!({ "prompt": prompt }))
}

/// Returns the request that creates a group.
pub fn put(group: &str) -> Vec<u8> {
    request("PUT", &format!("/v1/groups/{group}"), &json!({}))
}

/// Returns a request; without a body if that is null.
pub fn request(method: &str, path: &str, body: &Value) -> Vec<u8> {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    if body.is_null() {
        return format!("{head}\r\n").into_bytes();
    }
    let (body, kind) = (body.to_string(), "Content-Type: application/json");
    format!("{head}{kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}
