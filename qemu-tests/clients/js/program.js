// Checks of the API server with the JavaScript client. `node program.js CHECK` runs one check against the server
// that $KUBECONFIG names; a failure ends with code 1 and a sentence on standard error.
// A check that prints the line "restart" is answered on standard input once the server is back.
import * as k8s from '@kubernetes/client-node';
import { createInterface } from 'node:readline';

const namespace = 'default';
const config = new k8s.KubeConfig();
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

function that(ok, sentence) {
  if (!ok) throw new Error(sentence);
}

async function refused(code, reason, call) {
  try {
    await call();
  } catch (error) {
    that(error.code === code && String(error.body).includes(`"reason":"${reason}"`), `instead of ${reason} came ${error}`);
    return;
  }
  throw new Error(`what must fail with ${reason} was done`);
}

async function restart() {
  console.log('restart');
  const { value } = await lines.next();
  that(value === 'restarted', `the server's restart was answered with ${value}`);
}

async function until(what, ok) {
  for (let i = 0; i < 1000; i++) {
    if (ok()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`waited in vain for ${what}`);
}

function configMap(name, colour = 'red') {
  return { metadata: { name, labels: { 'made-by': 'js' } }, data: { colour } };
}

function as(kind) {
  return k8s.setHeaderOptions('Content-Type', kind);
}

const create = (core, body, more = {}) => core.createNamespacedConfigMap({ namespace, body, ...more });

async function createUpdateConflict(core) {
  const first = await create(core, configMap('a'));
  await refused(409, 'AlreadyExists', () => create(core, configMap('a')));
  first.data.colour = 'green';
  const second = await core.replaceNamespacedConfigMap({ name: 'a', namespace, body: first });
  that(second.metadata.uid === first.metadata.uid, 'an update gave another object');
  that(second.metadata.resourceVersion !== first.metadata.resourceVersion, 'an update made no new version');
  await refused(409, 'Conflict', () => core.replaceNamespacedConfigMap({ name: 'a', namespace, body: first }));
  const generated = await create(core, { metadata: { generateName: 'b-' } });
  that(generated.metadata.name.length === 7, `generateName gave ${generated.metadata.name}`);
  await create(core, configMap('dry'), { dryRun: 'All' });
  await refused(404, 'NotFound', () => core.readNamespacedConfigMap({ name: 'dry', namespace }));
  await refused(422, 'Invalid', () => create(core, configMap('Not_A_Name')));
}

async function patches(core) {
  const ports = [{ name: 'http', port: 80 }];
  await core.createNamespacedService({
    namespace,
    body: { metadata: { name: 's', annotations: { gone: 'soon' } }, spec: { ports } },
  });
  const patch = (kind, body) => core.patchNamespacedService({ name: 's', namespace, body }, as(kind));
  const merged = await patch(k8s.PatchStrategy.MergePatch, { metadata: { annotations: { gone: null, stays: 'here' } } });
  that(JSON.stringify(merged.metadata.annotations) === '{"stays":"here"}', 'merge patch removed nothing');
  const strategic = await patch(k8s.PatchStrategy.StrategicMergePatch, {
    spec: { ports: [{ name: 'https', port: 443 }] },
  });
  that(strategic.spec.ports.length === 2, `strategic merge patch gave ${strategic.spec.ports.length} ports`);
  const changed = await patch(k8s.PatchStrategy.JsonPatch, [{ op: 'add', path: '/metadata/labels', value: { a: 'b' } }]);
  that(changed.metadata.labels.a === 'b', 'JSON patch added nothing');
  await refused(422, 'Invalid', () =>
    patch(k8s.PatchStrategy.JsonPatch, [{ op: 'test', path: '/metadata/name', value: 'other' }]),
  );
  const removed = await patch(k8s.PatchStrategy.StrategicMergePatch, {
    spec: { ports: [{ $patch: 'delete', port: 443 }] },
  });
  that(removed.spec.ports.length === 1, 'strategic delete removed nothing');
}

async function apply(core) {
  const body = (data) => ({ apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'applied' }, data });
  const send = (data, fieldManager, force) =>
    core.patchNamespacedConfigMap(
      { name: 'applied', namespace, body: body(data), fieldManager, force },
      as(k8s.PatchStrategy.ServerSideApply),
    );
  await send({ a: '1', b: '1' }, 'one');
  await refused(409, 'Conflict', () => send({ a: '2' }, 'two'));
  const forced = await send({ a: '2' }, 'two', true);
  that(forced.data.a === '2' && forced.data.b === '1', 'force took nothing');
  const fewer = await send({}, 'one');
  that(JSON.stringify(fewer.data) === '{"a":"2"}', `giving fields up left ${JSON.stringify(fewer.data)}`);
}

async function remove(core) {
  for (const name of ['x', 'y', 'z']) await create(core, configMap(name));
  const wrong = { preconditions: { uid: 'not-this-one' } };
  await refused(409, 'Conflict', () => core.deleteNamespacedConfigMap({ name: 'x', namespace, body: wrong }));
  const status = await core.deleteNamespacedConfigMap({ name: 'x', namespace });
  that(status.status === 'Success', 'a delete gave no success');
  await core.deleteNamespacedConfigMap({ name: 'y', namespace, propagationPolicy: 'Foreground' });
  const held = await core.readNamespacedConfigMap({ name: 'y', namespace });
  that(held.metadata.deletionTimestamp instanceof Date, 'foreground deletion is not under way');
  await core.patchNamespacedConfigMap(
    { name: 'y', namespace, body: { metadata: { finalizers: null } } },
    as(k8s.PatchStrategy.MergePatch),
  );
  await refused(404, 'NotFound', () => core.readNamespacedConfigMap({ name: 'y', namespace }));
  await core.deleteCollectionNamespacedConfigMap({ namespace, labelSelector: 'made-by=js' });
  const left = await core.listNamespacedConfigMap({ namespace, labelSelector: 'made-by=js' });
  that(left.items.length === 0, `deletecollection left ${left.items.length}`);
}

async function pagination(core) {
  for (let i = 0; i < 25; i++) await create(core, configMap(`page-${String(i).padStart(2, '0')}`));
  const seen = new Set();
  const versions = new Set();
  let _continue;
  do {
    const page = await core.listNamespacedConfigMap({ namespace, limit: 10, _continue, labelSelector: 'made-by=js' });
    if (seen.size === 0) await create(core, configMap('page-99'));
    for (const item of page.items) seen.add(item.metadata.name);
    versions.add(page.metadata.resourceVersion);
    _continue = page.metadata._continue;
  } while (_continue);
  that(seen.size === 25 && !seen.has('page-99'), `the pages held ${seen.size} objects`);
  that(versions.size === 1, 'the pages are of several versions');
}

const path = `/api/v1/namespaces/${namespace}/configmaps`;

async function watchThroughRestart(core) {
  const list = await core.listNamespacedConfigMap({ namespace });
  let version = list.metadata.resourceVersion;
  const seen = [];
  let stopped = false;
  const follow = async () => {
    const event = (type, object) => {
      seen.push(`${type} ${object.metadata.name}`);
      version = object.metadata.resourceVersion;
    };
    const again = () => {
      if (!stopped) setTimeout(follow, 50);
    };
    return new k8s.Watch(config).watch(path, { resourceVersion: version }, event, again);
  };
  await follow();
  await create(core, configMap('before'));
  await until('the first event', () => seen.length === 1);
  await restart();
  await create(core, configMap('after'));
  await until('the second event', () => seen.length === 2);
  stopped = true;
  that(seen.join(', ') === 'ADDED before, ADDED after', `the events were ${seen.join(', ')}`);
}

async function informerThroughRestart(core) {
  for (let i = 0; i < 20; i++) await create(core, configMap(`there-${i}`));
  const informer = k8s.makeInformer(config, path, () => core.listNamespacedConfigMap({ namespace }));
  // As its documentation says: an informer that failed is started again by its user.
  informer.on('error', () => setTimeout(() => informer.start(), 50));
  await informer.start();
  const has = (name) => informer.get(name, namespace) !== undefined;
  that(has('there-0') && has('there-19'), "the informer's first list lacks an object");
  await restart();
  await create(core, configMap('new'));
  await core.deleteNamespacedConfigMap({ name: 'there-0', namespace });
  await until('an object that came', () => has('new'));
  await until('an object that went', () => !has('there-0'));
}

async function objectApi() {
  const client = k8s.KubernetesObjectApi.makeApiClient(config);
  const spec = { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name: 'loose', namespace }, data: { colour: 'red' } };
  await client.create(spec);
  await client.patch({ ...spec, data: { size: 'xl' } });
  const made = await client.read(spec);
  that(made.data.colour === 'red' && made.data.size === 'xl', 'the generic client made something else');
  const list = await client.list('v1', 'ConfigMap', namespace);
  that(list.items.some((item) => item.metadata.name === 'loose'), 'the generic list lacks the object');
  await client.delete(spec);
  await refused(404, 'NotFound', () => client.read(spec));
}

const checks = {
  create_update_conflict: createUpdateConflict,
  patches,
  apply,
  delete: remove,
  pagination,
  watch_through_a_restart: watchThroughRestart,
  informer_through_a_restart: informerThroughRestart,
  generic_client: objectApi,
};

const check = checks[process.argv[2]];
if (check === undefined) {
  console.error('usage: program.js CHECK');
  process.exit(2);
}
config.loadFromDefault();
try {
  await check(config.makeApiClient(k8s.CoreV1Api));
  process.exit(0);
} catch (error) {
  console.error(error.message ?? error);
  process.exit(1);
}
