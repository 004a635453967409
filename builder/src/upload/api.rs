//! A provider's JSON API: where it is, and who asks.

use super::PAGES;
use super::settings::Environment;
use crate::web::{Answer, Client, Request, trust};
use anyhow::{Context, Result, bail};
use serde_json::Value;

/// An API with the header that opens it.
#[derive(Clone)]
pub struct Api {
    client: Client,
    url: String,
    authorization: String,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Api({})", self.url)
    }
}

impl Api {
    /// The API at `default`, or where the variable says.
    ///
    /// # Errors
    /// The variable names an address without TLS, or with a password in it.
    pub fn new(
        client: &Client,
        env: Environment<'_>,
        variable: &str,
        default: &str,
        authorization: String,
    ) -> Result<Api> {
        let url = env(variable).unwrap_or_else(|| default.into());
        trust::check_address(variable, &url, "a token")?;
        Ok(Api { client: client.clone(), url: url.trim_end_matches('/').to_string(), authorization })
    }

    /// The client below.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The API for tidying up: an interrupt does not stop it.
    #[must_use]
    pub fn for_cleanup(&self) -> Api {
        Api { client: self.client.for_cleanup(), ..self.clone() }
    }

    /// An address of it.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Sends a request.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn send(&self, request: Request) -> Result<Answer> {
        self.client.send(&request.secret("authorization", self.authorization.clone()))
    }

    /// Removes a thing. One that is gone is no error. An interrupt does not stop it.
    ///
    /// # Errors
    /// The provider refuses.
    pub fn remove(&self, path: &str) -> Result<()> {
        let request = Request::delete(self.url(path)).would(204, &Value::Null);
        self.for_cleanup().send(request)?.expect(&[200, 204, 404])?;
        Ok(())
    }

    /// All entries of the list `name`, from the page at `first` on; `next` reads in a page where the next one is.
    /// `dress` adds what each request needs besides.
    ///
    /// # Errors
    /// The provider cannot be asked, lists without end, or points to another server.
    pub fn list(
        &self,
        first: &str,
        name: &str,
        dress: impl Fn(Request) -> Request,
        next: impl Fn(&Value) -> Option<String>,
    ) -> Result<Vec<Value>> {
        let (mut all, mut pages) = (Vec::new(), 0);
        let mut place = Some(self.url(first));
        while let Some(url) = place {
            if !url.starts_with(&self.url("/")) {
                bail!("{} points to another server for its next page", self.url);
            }
            let request = Request::get(url).would(200, &serde_json::json!({ name: [] }));
            let page = self.send(dress(request))?.expect(&[200])?.json()?;
            pages += 1;
            if pages > PAGES {
                bail!("{} lists without end", self.url);
            }
            all.extend(
                page[name].as_array().with_context(|| format!("the answer has no list '{name}'"))?.iter().cloned(),
            );
            place = next(&page);
        }
        Ok(all)
    }
}
