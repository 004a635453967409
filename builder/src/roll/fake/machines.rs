//! The fake's machines.

use super::*;

impl Machines for Fake {
    fn list(&self) -> Result<Vec<Machine>> {
        let world = self.0.borrow();
        let machine = |(node, machine): (&String, &FakeMachine)| Machine {
            node: node.clone(),
            image: machine.image.clone(),
            running: machine.running,
            keeps_data: !world.forgetful,
            on_volume: false,
        };
        Ok(world.machines.iter().map(machine).collect())
    }

    fn offer(&mut self, _: &ImageFile) -> Result<()> {
        Ok(())
    }

    fn holds(&self, image: &str) -> Result<bool> {
        Ok(image != "lost")
    }

    fn rebuild(&mut self, order: &Order<'_>) -> Result<Ended> {
        let mut world = self.0.borrow_mut();
        let secret = |id: &str| format!("/api/v1/namespaces/kube-system/secrets/bootstrap-token-{id}");
        match order.token {
            None if world.is_master(order.node) => {}
            Some(token) if world.objects.contains_key(&secret(&token.id)) => {}
            _ => bail!("{} could not join: the API server knows no such token", order.node),
        }
        if order.node == MASTER && order.data == Data::Goes {
            world.objects.clear();
        }
        if world.members.contains_key(order.node) {
            let others: Vec<_> =
                world.etcd().into_iter().filter(|member| world.members[order.node] != member.name).collect();
            if others.iter().any(|other| !other.healthy || other.learner) {
                let now = world.now;
                world.faults.push(format!("{now}: {} is stopped, and another member is away", order.node));
            }
        }
        if !world.is_master(order.node) && world.balanced(order.node) {
            let now = world.now;
            world.faults.push(format!("{now}: {} is stopped and still in the load balancer", order.node));
        }
        let left = world.pods().any(|(_, pod)| pod["spec"]["nodeName"] == order.node && world.is_ready(pod));
        if left {
            let now = world.now;
            world.faults.push(format!("{now}: {} is stopped with a pod that serves", order.node));
        }
        if world.stuck.contains(order.node) {
            bail!("it does not end");
        }
        let now = world.now;
        world.order.push(order.node.to_string());
        if is_spare(order.node) {
            world.machines.entry(order.node.into()).or_insert_with(FakeMachine::old);
        }
        let Some(machine) = world.machines.get_mut(order.node) else { bail!("there is no machine {}", order.node) };
        let anew = machine.anew(order.image, now, order.data == Data::AwaitsBackup);
        let (kept_data, joined) = (order.data == Data::Stays, order.data == Data::JoinsEtcd);
        let volumes = if kept_data { machine.volumes.clone() } else { BTreeMap::new() };
        *machine = FakeMachine { kept_data, joined, volumes, ..anew };
        Ok(Ended::Clean)
    }

    fn remove(&mut self, node: &str) -> Result<Ended> {
        let mut world = self.0.borrow_mut();
        let now = world.now;
        let serves = world.pods().any(|(_, pod)| pod["spec"]["nodeName"] == node && world.is_ready(pod));
        if serves {
            world.faults.push(format!("{now}: {node} is removed with a pod that serves"));
        }
        if world.members.contains_key(node) {
            world.faults.push(format!("{now}: {node} is removed and still a member"));
        }
        if world.stuck.contains(node) {
            bail!("it does not end");
        }
        if world.machines.remove(node).is_some() {
            world.order.push(node.to_string());
        }
        Ok(Ended::Clean)
    }

    fn boot(&self, node: &str) -> Option<String> {
        let world = self.0.borrow();
        let machine = world.machines.get(node)?;
        let lasted = world.now.as_second() - machine.started.as_second();
        let says = !world.busy || world.now.as_second() % 2 == 0;
        (machine.running && says && lasted >= BOOT_SECS / 2).then(|| machine.started.to_string())
    }

    fn console(&self, node: &str) -> Vec<String> {
        vec![format!("{node} waits for its network")]
    }

    fn panics(&self, node: &str) -> Option<String> {
        let world = self.0.borrow();
        world.panics.contains(&world.machines[node].image).then(|| "Kernel panic - not syncing: no init".into())
    }
}
