//! Keystone: OpenStack's tokens, and where its services are.
//! <https://docs.openstack.org/api-ref/identity/v3/>

use super::settings::{self, Environment};
use crate::input;
use crate::web::{Answer, Client, Request, trust};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard};

/// A service of OpenStack's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// Nova.
    Compute,
    /// Glance.
    Image,
    /// Neutron.
    Network,
    /// Cinder.
    Volume,
}

impl Service {
    /// As catalogues call it.
    fn names(self) -> &'static [&'static str] {
        match self {
            Service::Compute => &["compute"],
            Service::Image => &["image"],
            Service::Network => &["network"],
            // The newer one may lead to no version.
            Service::Volume => &["volumev3", "block-storage"],
        }
    }

    /// What an address of it may end with that stands in the paths of its calls.
    fn version(self) -> &'static str {
        match self {
            // Their addresses have the version, and maybe the project behind it.
            Service::Compute | Service::Volume => "/",
            Service::Image => "/v2",
            Service::Network => "/v2.0",
        }
    }
}

/// A project.
#[derive(Debug)]
pub(crate) struct Keystone {
    auth_url: String,
    identity: Identity,
    region: Option<String>,
    session: Mutex<Option<Session>>,
}

/// What Keystone is shown.
struct Identity(Value);

/// A token, and where the services are.
#[derive(Clone)]
struct Session {
    token: String,
    catalog: Value,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity(…)")
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Session(…)")
    }
}

impl Keystone {
    /// The project of the variables that OpenStack's own client reads (`OS_…`).
    ///
    /// # Errors
    /// One that is needed is missing.
    pub(crate) fn new(env: Environment<'_>, region: Option<&str>) -> Result<Keystone> {
        let auth_url = settings::need(env, "OS_AUTH_URL", "the address of Keystone")?;
        trust::check_address("OS_AUTH_URL", &auth_url, "a password")?;
        let auth_url = auth_url.trim_end_matches('/').trim_end_matches("/v3").to_string();
        Ok(Keystone {
            auth_url,
            identity: Identity(identity(env)?),
            region: region.map(str::to_string).or_else(|| env("OS_REGION_NAME")),
            session: Mutex::new(None),
        })
    }

    fn held(&self) -> MutexGuard<'_, Option<Session>> {
        self.session.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn log_in(&self, client: &Client) -> Result<Session> {
        // Twice a token is no harm.
        let request = Request::post(format!("{}/v3/auth/tokens", self.auth_url))
            .json(&json!({"auth": self.identity.0}))
            .hiding(false, true)
            .repeatable(true);
        let endpoint = json!({"interface": "public", "region": self.region, "url": "https://GLANCE"});
        let would = json!({"token": {"catalog": [{"type": "image", "endpoints": [endpoint]}]}});
        let answer = client.send(&request.would(201, &would).would_header("x-subject-token", "TOKEN"))?;
        if answer.status == 401 {
            return Err(
                anyhow::Error::new(answer.refused()).context("Keystone does not accept the credentials of OS_…")
            );
        }
        let answer = answer.expect(&[201])?;
        let token = answer.header("x-subject-token").context("Keystone's answer has no token")?.to_string();
        Ok(Session { token, catalog: answer.json()?["token"]["catalog"].clone() })
    }

    fn fits(&self, endpoint: &Value) -> bool {
        self.region.as_ref().is_none_or(|region| region_of(endpoint) == Some(region))
    }

    /// Where a service is, without a `/` at its end.
    fn place(&self, catalog: &Value, service: Service) -> Result<String> {
        let services = catalog.as_array().context("Keystone's answer has no catalogue; is OS_PROJECT_NAME right?")?;
        let (name, endpoints) = public(services, service);
        let fitting: Vec<&&Value> = endpoints.iter().filter(|endpoint| self.fits(endpoint)).collect();
        let url = match fitting[..] {
            [only] => only["url"].as_str(),
            _ => {
                let known: Vec<String> =
                    endpoints.iter().filter_map(|endpoint| region_of(endpoint)).map(str::to_string).collect();
                return input::bad(format!(
                    "the {name} service is in the regions {}; say which with --region, or as region under [provider]",
                    known.join(", ")
                ));
            }
        };
        let url = url.with_context(|| format!("the {name} service has no address"))?.trim_end_matches('/');
        if !trust::is_safe(url) {
            bail!("Keystone names {url} for the {name} service; a token goes over https:// only");
        }
        Ok(url.trim_end_matches(service.version()).to_string())
    }

    fn session(&self, client: &Client) -> Result<Session> {
        let known = self.held().clone();
        if let Some(session) = known {
            return Ok(session);
        }
        let session = self.log_in(client)?;
        *self.held() = Some(session.clone());
        Ok(session)
    }

    /// Whether the region has a service at all.
    pub(crate) fn has(&self, client: &Client, service: Service) -> Result<bool> {
        let catalog = self.session(client)?.catalog;
        let of = |services: &Vec<Value>| public(services, service).1.iter().any(|endpoint| self.fits(endpoint));
        Ok(catalog.as_array().is_some_and(of))
    }

    /// Sends a request to a service, whose address it is made with, with a new token when the old one has run out.
    pub(crate) fn send(&self, client: &Client, service: Service, make: &dyn Fn(&str) -> Request) -> Result<Answer> {
        let answer = self.send_once(client, service, make)?;
        if answer.status != 401 {
            return Ok(answer);
        }
        *self.held() = None;
        self.send_once(client, service, make)
    }

    fn send_once(&self, client: &Client, service: Service, make: &dyn Fn(&str) -> Request) -> Result<Answer> {
        let session = self.session(client)?;
        let place = self.place(&session.catalog, service)?;
        client.send(&make(&place).secret("x-auth-token", session.token))
    }
}

/// What a service is called, and where it is for everybody.
fn public(services: &[Value], service: Service) -> (&'static str, Vec<&Value>) {
    let mut last = ("", Vec::new());
    for name in service.names() {
        let named = services.iter().filter(|service| service["type"] == *name);
        let all = named.filter_map(|service| service["endpoints"].as_array()).flatten();
        last = (*name, all.filter(|endpoint| endpoint["interface"] == "public").collect());
        if !last.1.is_empty() {
            break;
        }
    }
    last
}

fn region_of(endpoint: &Value) -> Option<&str> {
    endpoint["region"].as_str().or(endpoint["region_id"].as_str())
}

/// What Keystone wants to know: an application credential, or a user and a project.
fn identity(env: Environment<'_>) -> Result<Value> {
    if let Some(id) = settings::find(env, "OS_APPLICATION_CREDENTIAL_ID")? {
        let secret =
            settings::need(env, "OS_APPLICATION_CREDENTIAL_SECRET", "the secret of the application credential")?;
        let credential = json!({"id": id, "secret": secret});
        return Ok(json!({"identity": {"methods": ["application_credential"], "application_credential": credential}}));
    }
    let user = settings::need(env, "OS_USERNAME", "the user")?;
    let password = settings::need(env, "OS_PASSWORD", "the user's password")?;
    let domain = |name: &str, id: &str| match env(id) {
        Some(id) => json!({"id": id}),
        None => json!({"name": env(name).or_else(|| env("OS_DOMAIN_NAME")).unwrap_or_else(|| "Default".into())}),
    };
    let user_domain = domain("OS_USER_DOMAIN_NAME", "OS_USER_DOMAIN_ID");
    let project = match (env("OS_PROJECT_ID"), env("OS_PROJECT_NAME")) {
        (Some(id), _) => json!({"id": id}),
        (None, Some(name)) => json!({"name": name, "domain": domain("OS_PROJECT_DOMAIN_NAME", "OS_PROJECT_DOMAIN_ID")}),
        (None, None) => return input::bad("neither OS_PROJECT_ID nor OS_PROJECT_NAME is set"),
    };
    let user = json!({"name": user, "domain": user_domain, "password": password});
    let identity = json!({"methods": ["password"], "password": {"user": user}});
    Ok(json!({"identity": identity, "scope": {"project": project}}))
}
