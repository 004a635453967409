use super::*;

pub(crate) fn node(name: &str, ready: bool) -> Node {
    Node {
        name: name.into(),
        ready,
        reason: "no news".into(),
        boot: "b".into(),
        cordoned: false,
        cordoned_by_roll: false,
        level: Level::of("v1.36.0+kimg"),
        addresses: Vec::new(),
    }
}

fn machine(name: &str, image: &str) -> Machine {
    Machine { node: name.into(), image: image.into(), running: true, keeps_data: true, on_volume: false }
}

/// A cluster of a master and three workers, of which `w2` holds a claim.
struct World {
    nodes: Vec<Node>,
    machines: Vec<Machine>,
    claims: Vec<Claim>,
    bare: Vec<(String, String)>,
    carried: BTreeMap<String, Vec<Copied>>,
}

fn world() -> World {
    let claim = Claim {
        node: "w2".into(),
        claim: "a/db".into(),
        size: "1Gi".into(),
        pods: vec!["db-0".into()],
        volume: Some("pvc-1".into()),
    };
    World {
        nodes: ["m", "w1", "w2", "w3"].map(|name| node(name, true)).into(),
        machines: ["w1", "w2", "w3"].map(|name| machine(name, "old")).into(),
        claims: vec![claim],
        bare: Vec::new(),
        carried: BTreeMap::new(),
    }
}

/// The provider keeps no data.
fn forgetful(world: &mut World) {
    world.machines.iter_mut().for_each(|machine| machine.keeps_data = false);
}

fn wish(nodes: &[&str]) -> Wish {
    Wish {
        nodes: nodes.iter().map(ToString::to_string).collect(),
        images: ["w1", "w2", "w3"].map(|name| (name.to_string(), "new".to_string())).into(),
        ..Wish::default()
    }
}

fn plan(world: &World, wish: &Wish) -> Result<Plan, Refusal> {
    let situation = Situation {
        workers: vec!["w1", "w2", "w3"],
        masters: vec!["m"],
        members: &BTreeMap::new(),
        nodes: &world.nodes,
        machines: &world.machines,
        gap_secs: 7,
        claims: &world.claims,
        bare_pods: &world.bare,
        carried: &world.carried,
    };
    make(wish, &situation)
}

fn names(world: &World, wish: &Wish) -> Vec<String> {
    plan(world, wish).expect("a plan").nodes.into_iter().map(|item| item.node).collect()
}

fn refused(world: &World, wish: &Wish) -> (u8, String) {
    match plan(world, wish).expect_err("refused") {
        Refusal::Mistake(why) | Refusal::Undecided(_, why) => (2, why),
        Refusal::Unfit(why) => (1, why),
    }
}

#[test]
fn old_images_are_replaced_in_the_order_of_the_file() {
    let mut world = world();
    assert_eq!(names(&world, &wish(&[])), ["w1", "w2", "w3"]);
    assert_eq!(names(&world, &wish(&["w3", "w1"])), ["w1", "w3"]);
    assert_eq!(names(&world, &Wish { first: vec!["w2".into()], ..wish(&[]) }), ["w2", "w1", "w3"]);
    world.machines[0].image = "new".into();
    assert_eq!(names(&world, &wish(&["workers"])), ["w2", "w3"]);
    assert!(names(&world, &wish(&["w1"])).is_empty());
}

#[test]
fn a_broken_cluster_is_left_alone_unless_the_broken_node_is_replaced() {
    let mut world = world();
    world.nodes[3] = node("w3", false);
    // It is among those that are replaced, and comes first.
    assert_eq!(names(&world, &wish(&[])), ["w3", "w1", "w2"]);
    let (code, why) = refused(&world, &wish(&["w1"]));
    assert!(code == 1 && why.contains("w3 is not Ready (no news)"), "{why}");
    // Its image is the right one: it is made anew only by name, and until then nothing else is.
    world.machines[2].image = "new".into();
    assert_eq!(refused(&world, &wish(&[])).0, 1);
    assert_eq!(names(&world, &wish(&["w3"])), ["w3"]);
    world.machines[0].image = "new".into();
    world.machines[1].image = "new".into();
    assert!(names(&world, &wish(&[])).is_empty(), "nothing to do is no failure");
    // It is Ready by what the API server knows, and its machine is down.
    world.nodes[3] = node("w3", true);
    world.machines[2].running = false;
    world.machines[0].image = "old".into();
    assert!(refused(&world, &wish(&[])).1.contains("the machine w3 does not run"));
    world.machines[0].image = "new".into();
    world.machines[2].running = true;
    world.nodes.remove(3);
    let again = plan(&world, &wish(&["w3"])).expect("plan");
    assert!(again.text().contains("image new, again (it has not joined)"), "{}", again.text());
    world.machines[0].image = "old".into();
    assert!(refused(&world, &wish(&["w1"])).1.contains("w3 has not joined"));
    // Nobody has made it yet: it keeps no other from another image.
    world.machines.remove(2);
    assert_eq!(names(&world, &wish(&[])), ["w1"]);
    assert!(refused(&world, &wish(&["w3"])).1.contains("there is no machine w3"));
    // It was there, and is lost.
    world.nodes.push(node("w3", false));
    assert!(refused(&world, &wish(&[])).1.contains("there is no machine w3"));
}

#[test]
fn the_master_is_first_on_the_way_forth_and_last_on_the_way_back() {
    let mut world = world();
    world.machines.push(machine("m", "old"));
    let image = ("m".to_string(), "new".to_string());
    let with = |nodes: &[&str]| {
        let mut wish = wish(nodes);
        wish.images.extend([image.clone()]);
        wish
    };
    assert_eq!(names(&world, &with(&[])), ["m", "w1", "w2", "w3"]);
    assert_eq!(names(&world, &with(&["workers"])), ["w1", "w2", "w3"]);
    for name in ["m", "master", "masters"] {
        assert_eq!(names(&world, &with(&[name])), ["m"]);
    }
    assert_eq!(names(&world, &Wish { back: true, ..with(&[]) }), ["w1", "w2", "w3", "m"]);
    let text = plan(&world, &with(&[])).expect("plan").text();
    assert!(text.starts_with("m: image old to new; keeps its store; the API is away for about 7 s, pods run on\n"));
    // Also where a worker is broken; what is on its way back is the first to go there.
    world.nodes[3] = node("w3", false);
    assert_eq!(names(&world, &with(&[])), ["m", "w3", "w1", "w2"]);
    world.nodes[3] = node("w3", true);
    let back = Wish { back: true, first: vec!["m".into()], ..with(&[]) };
    assert_eq!(names(&world, &back), ["m", "w1", "w2", "w3"]);
    forgetful(&mut world);
    world.claims.clear();
    // A store is kept, in whichever way.
    let kept = plan(&world, &with(&[])).expect("plan").nodes;
    assert_eq!(kept.iter().map(|item| item.keep_data).collect::<Vec<_>>(), [true, false, false, false]);
    assert_eq!(names(&world, &with(&["workers"])), ["w1", "w2", "w3"]);
    let (code, why) = refused(&world, &wish(&["w4"]));
    assert!(code == 2 && why.contains("`workers`, `master`, or some of: m, w1, w2, w3"), "{why}");
}

#[test]
fn no_local_volume_is_lost_without_a_decision() {
    let mut world = world();
    let with = |lose: &[&str], keep_data| Wish {
        lose: lose.iter().map(ToString::to_string).collect(),
        keep_data,
        ..wish(&[])
    };
    let kept = |world: &World, wish: &Wish| -> Vec<bool> {
        plan(world, wish).expect("plan").nodes.iter().map(|item| item.keep_data).collect()
    };
    assert_eq!(kept(&world, &with(&[], false)), [false, true, false]);
    assert_eq!(kept(&world, &with(&[], true)), [true, true, true]);
    assert_eq!(kept(&world, &with(&["a/db"], false)), [false, false, false]);
    let text = plan(&world, &with(&["a/db"], false)).expect("plan").text();
    assert!(text.contains("IS LOST: claim a/db (1Gi, db-0)"), "{text}");
    let text = plan(&world, &with(&[], false)).expect("plan").text();
    assert!(text.contains("w2: image old to new; keeps its data\n  stays: claim a/db (1Gi, db-0)"), "{text}");
    let (code, why) = refused(&world, &with(&["a/other"], false));
    assert!(code == 2 && why.contains("--lose-data a/other"), "{why}");
    forgetful(&mut world);
    let (code, why) = refused(&world, &with(&[], true));
    assert!(code == 2 && why.contains("a/db (1Gi, db-0)") && why.contains("--lose-data"), "{why}");
    assert_eq!(kept(&world, &with(&["a/db"], true)), [false, false, false]);
    assert_eq!(names(&world, &Wish { nodes: vec!["w1".into()], ..with(&[], false) }), ["w1"]);
}

#[test]
fn a_claim_is_copied_where_nothing_else_keeps_it() {
    let mut world = world();
    let with = |copy: &[&str]| Wish { copy: copy.iter().map(ToString::to_string).collect(), ..wish(&[]) };
    let of_w2 = |world: &World, wish: &Wish| plan(world, wish).expect("plan").nodes.swap_remove(1);
    // A disk that could stay is a new one where all of its claims are copied.
    let item = of_w2(&world, &with(&["a/db"]));
    assert!(!item.keep_data && item.keeps.is_empty() && item.copies.len() == 1 && !item.carried, "{item:?}");
    let text = plan(&world, &with(&["a/db"])).expect("plan").text();
    assert!(text.contains("new disk\n  is copied through this machine: claim a/db (1Gi, db-0)"), "{text}");
    world.claims.push(Claim { claim: "a/other".into(), ..world.claims[0].clone() });
    let item = of_w2(&world, &with(&["a/db"]));
    assert!(item.keep_data && item.keeps.len() == 2 && item.copies.is_empty(), "{item:?}");
    let again = Wish { copy_again: vec!["a/db".into(), "a/other".into(), "a/gone".into()], ..wish(&[]) };
    assert!(of_w2(&world, &again).keep_data);
    // What is on a data volume stays there.
    world.machines.iter_mut().for_each(|machine| machine.on_volume = true);
    let item = of_w2(&world, &with(&["a/db", "a/other"]));
    assert!(item.keep_data && item.keeps.len() == 2, "{item:?}");
    world.machines.iter_mut().for_each(|machine| machine.on_volume = false);
    forgetful(&mut world);
    let (code, why) = refused(&world, &with(&["a/db"]));
    assert!(
        code == 2 && why.contains(": a/other (") && why.contains("--copy-data") && why.contains("--lose-data"),
        "{why}"
    );
    assert_eq!(of_w2(&world, &with(&["a/db", "a/other"])).copies.len(), 2);
    assert_eq!(of_w2(&world, &again).copies.len(), 2);
    let both = Wish { lose: vec!["a/db".into()], ..with(&["a/db", "a/other"]) };
    assert!(refused(&world, &both).1.contains("say one of them"));
    let (code, why) = refused(&world, &with(&["a/db", "a/other", "a/third"]));
    assert!(code == 2 && why.contains("--copy-data a/third: no node"), "{why}");
    world.claims[1].volume = None;
    let (code, why) = refused(&world, &with(&["a/db", "a/other"]));
    assert!(code == 2 && why.contains("a/other: its volume is none of the default class"), "{why}");
}

#[test]
fn a_copy_that_is_here_is_given_to_its_node_first() {
    let mut world = world();
    forgetful(&mut world);
    let copied = Copied { claim: "a/db".into(), volume: "pvc-1".into(), lost: false };
    world.carried = [("w2".to_string(), vec![copied])].into();
    // Also where its image is the right one, for it lacks its data.
    world.machines[1].image = "new".into();
    let whole = plan(&world, &wish(&[])).expect("plan");
    let journal = whole.journal(crate::roll::tests::rules(), Vec::new(), false, Timestamp::UNIX_EPOCH);
    assert!(journal.nodes[1].is_carried() && !journal.nodes[1].keep_data, "{journal:?}");
    assert!(whole.text().contains("from this machine, where it is: claim a/db"), "{}", whole.text());
    let (code, why) = refused(&world, &wish(&["w1"]));
    assert!(code == 1 && why.contains("`kimg roll w2`"), "{why}");
    // What came to the node since is in no copy.
    world.claims.push(Claim { claim: "a/other".into(), ..world.claims[0].clone() });
    world.machines.iter_mut().for_each(|machine| machine.keeps_data = true);
    assert!(refused(&world, &wish(&[])).1.contains("a/other"));
    let lost = Wish { lose: vec!["a/db".into(), "a/other".into()], ..wish(&[]) };
    assert!(!plan(&world, &lost).expect("plan").nodes[1].carried);
}

#[test]
fn pods_that_nothing_starts_again_need_a_decision() {
    let mut world = world();
    world.bare.push(("w1".into(), "a/once".into()));
    let (code, why) = refused(&world, &wish(&[]));
    assert!(code == 2 && why.contains("a/once") && why.contains("--lose-pods"), "{why}");
    let plan = plan(&world, &Wish { lose_pods: true, ..wish(&[]) }).expect("plan");
    assert_eq!(plan.nodes[0].ends, ["a/once"]);
    assert_eq!(names(&world, &wish(&["w2"])), ["w2"]);
    // On a node that is down they are gone already.
    world.nodes[1] = node("w1", false);
    assert_eq!(names(&world, &wish(&[])), ["w1", "w2", "w3"]);
}

#[test]
fn amounts_round_as_cluster_api_does() {
    let cases = [("1", 3, 1), ("2", 3, 2), ("34%", 3, 1), ("50%", 3, 1), ("67%", 3, 2), ("1%", 3, 1), ("100%", 4, 4)];
    for (text, total, most) in cases {
        assert_eq!(text.parse::<Amount>().expect(text).unavailable_of(total), most, "{text} of {total}");
    }
    for text in ["0", "-1", "101%", "x", "%"] {
        assert!(text.parse::<Amount>().is_err(), "{text}");
    }
}
