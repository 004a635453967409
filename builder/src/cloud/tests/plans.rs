//! What a plan says: prices, the budget, and what was changed by hand.

use super::*;

#[test]
fn a_plan_has_the_price_and_minds_the_budget() {
    for which in rented() {
        let stage = Stage::new(which);
        let plan = stage.plan();
        let makes = |step: &Step| matches!(step, Step::MakeServer { .. });
        assert_eq!(plan.steps.iter().filter(|step| makes(step)).count(), 2);
        assert!(matches!(&plan.steps[0], Step::MakeNetwork { range } if range == "10.80.0.0/20"), "{plan:?}");
        assert_eq!((plan.monthly_now, plan.monthly_then), (Some(Cents(0)), Some(which.monthly())), "{which:?}");
        assert!(plan.refusals.is_empty() && plan.makes_servers(), "{plan:?}");
        assert!(plan.shown().contains("make the firewall of the workers"), "{}", plan.shown());
        let text = serde_json::to_value(&plan).unwrap();
        assert_eq!(text["monthlyThen"], json!(which.monthly()));
        let poor = Stage::of(which, settings(which, "budget = 6\n"));
        assert!(poor.plan().refusals[0].contains("and the budget is 6.00"), "{:?}", poor.plan().refusals);
        let typo = which.provider().split('\n').nth(2).unwrap().split('"').nth(1).unwrap();
        let wrong = settings(which, "").text.replacen(typo, &format!("{typo}x"), 1);
        let wrong = read(&wrong);
        let refusals = Stage::of(which, wrong).plan().refusals;
        assert!(refusals[0].contains(&format!("did you mean {typo}?")), "{refusals:?}");
        let elsewhere = settings(which, "")
            .text
            .replace("nbg1", "nbg2")
            .replace("fra1", "fra9")
            .replace("eu-central", "eu-centre")
            .replace("\"fra\"", "\"frx\"")
            .replace("RegionOne", "RegionTwo")
            .replace("west3-a", "west3-x")
            .replace("west-1a", "west-1x");
        let elsewhere = read(&elsewhere);
        let error = Stage::of(which, elsewhere).cloud().offer().unwrap_err();
        assert!(error.is::<crate::input::BadInput>(), "{error:#}");
    }
}

#[test]
fn what_has_no_price_is_not_free() {
    assert_eq!([f64::NAN, f64::INFINITY, -1.0].map(Cents::of), [None; 3]);
    for which in rented() {
        let stage = Stage::new(which);
        stage.world().no_price = true;
        match which {
            Which::Hetzner => {
                let error = stage.cloud().offer().unwrap_err().to_string();
                assert!(error.contains("no price of an IPv4 address in nbg1"), "{error}");
            }
            Which::DigitalOcean => {
                assert!(stage.plan().refusals[0].contains("has no type s-1vcpu-1gb in fra1"), "{:?}", stage.plan());
            }
            Which::Vultr => {
                let refusals = stage.plan().refusals;
                assert!(refusals[0].contains("has no type vc2-1c-1gb in fra"), "{refusals:?}");
            }
            // It says none: what nobody says is neither free nor within a budget.
            Which::OpenStack | Which::Gcp | Which::Aws => {
                let typed = which.provider().split('\n').nth(2).unwrap().split('"').nth(1).unwrap();
                let untold = |more: &str| {
                    let text = settings(which, more)
                        .text
                        .replace(&format!("prices = {{ \"{typed}\" = 5, data-gb = 0.1 }}"), "");
                    Stage::of(which, read(&text))
                };
                let poor = untold("budget = 30\n");
                let refusals = poor.plan().refusals;
                let says =
                    [&format!("no price of m ({typed}), w ({typed})"), "write its price under [provider.prices]"];
                assert!(says.iter().all(|says| refusals[0].contains(says)), "{refusals:?}");
                assert!(poor.up().unwrap_err().is::<BadInput>());
                poor.check_only_asked(0);
                let stage = untold("");
                let plan = stage.plan();
                let shown = plan.shown();
                assert!(plan.refusals.is_empty() && plan.makes_servers() && plan.unpriced.len() == 2, "{plan:?}");
                assert_eq!((plan.monthly_now, plan.monthly_then), (Some(Cents(0)), None), "{plan:?}");
                assert!(shown.contains(" now, unknown then (without taxes"), "{shown}");
                assert!(
                    shown.contains(&format!("without m ({typed}), w ({typed}), whose price nobody says")),
                    "{shown}"
                );
                let row = |line: &str| line.starts_with("make w ") && line.trim().ends_with("unknown");
                assert!(shown.lines().any(row), "{shown}");
                stage.up().unwrap();
                let plan = stage.plan();
                assert_eq!((plan.monthly_now, plan.unpriced.len(), plan.drift.len()), (None, 2, 0), "{plan:?}");
                assert_eq!(serde_json::to_value(&plan).unwrap()["unpriced"], json!(plan.unpriced));
            }
            Which::Proxmox => {}
            Which::Linode => {
                let refusals = stage.plan().refusals;
                assert!(refusals[0].contains("has no type g6-nanode-1 in eu-central"), "{refusals:?}");
            }
        }
        // An old machine whose type is in no list any more.
        let stage = Stage::of(which, settings(which, "budget = 30\n"));
        stage.up().unwrap();
        {
            let mut world = stage.world();
            let (master, worker) = (world.machine("m.demo")[0], world.machine("w.demo")[0]);
            let old = world.machines.get_mut(&master).unwrap();
            (old.body["server_type"], old.body["size"]) = (json!("old1"), json!("old1"));
            world.machines.remove(&worker);
        }
        let refusals = stage.plan().refusals;
        assert!(
            refusals[0].contains("no price of m (old1)") && refusals[0].contains("budget of 30.00"),
            "{refusals:?}"
        );
        // Where there is no budget, the sums are without it and say so.
        let free = Stage { settings: settings(which, ""), ..stage };
        let plan = free.plan();
        assert!(plan.refusals.is_empty() && plan.unpriced == ["m (old1)"], "{plan:?}");
        assert!(plan.monthly_now.is_none() && plan.monthly_then.is_some(), "{plan:?}");
        assert!(plan.shown().contains("without m (old1), whose price nobody says"), "{}", plan.shown());
    }
}

#[test]
fn a_size_that_is_made_no_more_keeps_its_price() {
    let stage = Stage::new(Which::DigitalOcean);
    let offer = stage.cloud().offer().unwrap();
    assert_eq!(offer.sizes["x"], Size { monthly: Some(Cents(100)), disk_gb: 9, available: false });
    let elsewhere = settings(Which::DigitalOcean, "").text.replace("\"s-1vcpu-1gb\"", "\"x\"");
    let elsewhere = read(&elsewhere);
    let refusals = Stage::of(Which::DigitalOcean, elsewhere).plan().refusals;
    assert!(refusals[0].contains("has no type x in fra1; there are s-1vcpu-1gb, s-1vcpu-2gb"), "{refusals:?}");
}

#[test]
fn a_machine_of_another_region_or_type_is_told() {
    for which in ALL {
        let stage = Stage::whole(which);
        let id = stage.world().machine("w.demo")[0];
        let (place, size) = match which {
            Which::Hetzner => ("location", "server_type"),
            Which::Proxmox => ("node", "tags"),
            _ => ("region", "size"),
        };
        {
            let mut world = stage.world();
            let body = &mut world.machines.get_mut(&id).unwrap().body;
            let of = match which {
                Which::Hetzner => json!("cx33"),
                Which::Proxmox => replaced(&body["tags"], "1c-1g", "x"),
                _ => json!("x"),
            };
            (body[place], body[size]) = (json!("far1"), of);
        }
        let plan = stage.plan();
        assert!(plan.drift[0].starts_with("w is a ") && plan.drift[0].ends_with("it stays one"), "{:?}", plan.drift);
        let region = stage.provider().region.as_str();
        // OpenStack shows those of a region only.
        if which != Which::OpenStack {
            assert_eq!(plan.drift[1], format!("w is in far1, and cluster.toml says {region}; it stays there"));
        }
        assert!(plan.refusals.is_empty() && plan.steps.is_empty(), "{plan:?}");
    }
    // A VPC is in one region, and its droplets with it.
    let stage = Stage::whole(Which::DigitalOcean);
    stage.world().things.iter_mut().find(|((kind, _), _)| *kind == "vpc").unwrap().1["region"] = json!("ams3");
    assert!(stage.plan().refusals[0].contains("write region = \"ams3\" under [provider]"), "{:?}", stage.plan());
}

#[test]
fn what_was_changed_by_hand_comes_first_and_is_put_right() {
    for which in rented() {
        let stage = Stage::whole(which);
        let rules = match which {
            Which::DigitalOcean => "inbound_rules",
            Which::OpenStack => "security_group_rules",
            _ => "rules",
        };
        {
            let mut world = stage.world();
            let id = world.machine("w.demo")[0];
            world.machines.get_mut(&id).unwrap().off = true;
            let of = |role: &str| json!(which.firewall(role));
            let firewall = world.things.iter_mut().find(|(_, body)| body["name"] == of("worker")).unwrap().1;
            firewall[rules] = json!([]);
            let name = which.firewall("master");
            world.things.retain(|_, body| !body["name"].as_str().is_some_and(|known| known.starts_with(&name)));
        }
        let plan = stage.plan();
        assert_eq!(
            plan.drift,
            [
                "the firewall of the masters is gone",
                "the rules of the firewall of the workers were changed",
                "w is switched off"
            ]
        );
        assert_eq!(
            plan.steps,
            [
                Step::MakeFirewall { role: Role::Master },
                Step::SetRules { role: Role::Worker },
                Step::Start { node: "w".into() }
            ]
        );
        assert!(stage.up().unwrap().made.is_empty());
        stage.check_whole("put right");
        if which == Which::OpenStack {
            let world = stage.world();
            for (_, port) in world.of("port").filter(|(_, port)| port["security_groups"].is_array()) {
                let id: u64 = port["security_groups"][0].as_str().unwrap().parse().unwrap();
                assert!(world.things.contains_key(&("firewall", id)), "a machine is behind no firewall");
            }
        }
        if which == Which::Aws {
            let world = stage.world();
            for machine in world.machines.values() {
                let id = machine.body["firewalls"][0]["firewall"].as_u64().unwrap();
                assert!(world.things.contains_key(&("firewall", id)), "a machine is behind no firewall");
            }
        }
        if which == Which::Vultr {
            let world = stage.world();
            for machine in world.machines.values() {
                let id: u64 = machine.body["firewall_group_id"].as_str().unwrap().parse().unwrap();
                assert!(world.things.contains_key(&("firewall", id)), "a machine is behind no firewall");
            }
        }
        assert!(stage.plan().drift.is_empty(), "{:?}", stage.plan());
        stage.check_calls(None);
    }
}

#[test]
fn the_smallest_disk_of_a_role_is_that_of_its_images() {
    let more = "[[nodes]]\nname = \"v\"\nrole = \"worker\"\ntype = \"cx23\"\n";
    let text = settings(Which::Hetzner, "worker-type = \"cx33\"\n").text;
    let stage = Stage::of(Which::Hetzner, read(&text));
    let offer = stage.cloud().offer().unwrap();
    let smallest = |settings: &Settings| {
        let provider = settings.provider.as_ref().unwrap();
        let (client, progress) = (&stage.clock.client(), &Progress::hidden());
        Uploads { settings, provider, offer: &offer, client, env: &|_| None, progress }.smallest(Role::Worker)
    };
    assert_eq!(smallest(&stage.settings), "cx33");
    assert_eq!(smallest(&read(&format!("{text}{more}"))), "cx23");
}

#[test]
fn what_somebody_else_called_so_is_not_taken() {
    let stage = Stage::new(Which::Hetzner);
    stage.world().things.insert(("network", 9), json!({"name": format!("kimg-demo-{}", ca()), "labels": {}}));
    let error = format!("{:#}", stage.up().unwrap_err());
    assert!(error.contains("that is not this cluster's"), "{error}");
    assert!(stage.world().machines.is_empty());
}

#[test]
fn a_worker_that_would_be_newer_than_its_master_is_not_made() {
    let stage = Stage::new(Which::Hetzner);
    for (version, refused) in [("v1.35.2+kimg", true), ("v1.36.0+kimg", false), ("v1.38.0", true), ("", false)] {
        let mut plan = stage.plan();
        plan.steps.retain(|step| !matches!(step, Step::MakeServer { node, .. } if node == "m"));
        let master = json!({"metadata": {"name": "m"}, "status": {"nodeInfo": {"kubeletVersion": version}}});
        plan.refuse_skew(&stage.settings, &[crate::client::kube::node_state(&master)]);
        assert_eq!(plan.check().is_err(), refused, "{version}: {:?}", plan.refusals);
        assert!(!refused || plan.refusals[0].starts_with("w would have API level 1.36, and m has 1.3"), "{plan:?}");
    }
}
