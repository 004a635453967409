package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	clientfeatures "k8s.io/client-go/features"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	watchtools "k8s.io/client-go/tools/watch"
)

var configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}

// watchThroughRestart follows with a RetryWatcher: no event may be lost or seen twice.
func watchThroughRestart(ctx context.Context, config *rest.Config) error {
	client, err := maps(config)
	if err != nil {
		return err
	}
	list, err := client.List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	watcher, err := watchtools.NewRetryWatcher(list.ResourceVersion, &cache.ListWatch{
		WatchFunc: func(options metav1.ListOptions) (watch.Interface, error) { return client.Watch(ctx, options) },
	})
	if err != nil {
		return err
	}
	defer watcher.Stop()
	next := func(want string) error {
		select {
		case event := <-watcher.ResultChan():
			object, ok := event.Object.(*corev1.ConfigMap)
			return that(ok && event.Type == watch.Added && object.Name == want, "instead of %s came %v %v", want, event.Type, event.Object)
		case <-ctx.Done():
			return fmt.Errorf("no event of %s came", want)
		}
	}
	for _, name := range []string{"before", "after", "later"} {
		if _, err := client.Create(ctx, configMap(name, "red"), metav1.CreateOptions{}); err != nil {
			return err
		}
		if err := next(name); err != nil {
			return err
		}
		if name != "later" {
			if err := restart(); err != nil {
				return err
			}
		}
	}
	return nil
}

// follow checks that an informer sees what is there, what comes, what changes and what goes.
func follow(ctx context.Context, config *rest.Config, informer cache.SharedIndexInformer, between func() error) error {
	client, err := maps(config)
	if err != nil {
		return err
	}
	for i := range 20 {
		if _, err := client.Create(ctx, configMap(fmt.Sprintf("there-%d", i), "red"), metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	go informer.Run(ctx.Done())
	if err := until(ctx, "the informer's first list", informer.HasSynced); err != nil {
		return err
	}
	has := func(name string) bool {
		_, exists, _ := informer.GetStore().GetByKey("default/" + name)
		return exists
	}
	if err := that(has("there-0") && has("there-19"), "the informer's first list lacks an object"); err != nil {
		return err
	}
	if err := between(); err != nil {
		return err
	}
	if _, err := client.Create(ctx, configMap("new", "red"), metav1.CreateOptions{}); err != nil {
		return err
	}
	if err := client.Delete(ctx, "there-0", metav1.DeleteOptions{}); err != nil {
		return err
	}
	return errors.Join(
		until(ctx, "an object that came", func() bool { return has("new") }),
		until(ctx, "an object that went", func() bool { return !has("there-0") }),
	)
}

func nothing() error { return nil }

func typed(config *rest.Config) (cache.SharedIndexInformer, error) {
	client, err := corev1client.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	source := cache.NewListWatchFromClient(client.RESTClient(), "configmaps", "default", fields.Everything())
	return cache.NewSharedIndexInformer(source, &corev1.ConfigMap{}, 0, cache.Indexers{}), nil
}

func typedInformer(ctx context.Context, config *rest.Config) error {
	informer, err := typed(config)
	if err != nil {
		return err
	}
	return follow(ctx, config, informer, nothing)
}

func informerThroughRestart(ctx context.Context, config *rest.Config) error {
	informer, err := typed(config)
	if err != nil {
		return err
	}
	return follow(ctx, config, informer, restart)
}

func dynamicInformer(ctx context.Context, config *rest.Config) error {
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := dynamicinformer.NewDynamicSharedInformerFactory(client, 0)
	if err := follow(ctx, config, factory.ForResource(configMaps).Informer(), nothing); err != nil {
		return err
	}
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": "loose", "namespace": "default"},
		"data":     map[string]any{"colour": "red"},
	}}
	made, err := client.Resource(configMaps).Namespace("default").Apply(ctx, "loose", object, metav1.ApplyOptions{FieldManager: "loose"})
	if err != nil {
		return err
	}
	colour, _, _ := unstructured.NestedString(made.Object, "data", "colour")
	return that(colour == "red", "a dynamic apply gave %v", made.Object)
}

func metadataInformer(ctx context.Context, config *rest.Config) error {
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return err
	}
	factory := metadatainformer.NewSharedInformerFactory(client, 0)
	informer := factory.ForResource(configMaps).Informer()
	if err := follow(ctx, config, informer, nothing); err != nil {
		return err
	}
	found, _, _ := informer.GetStore().GetByKey("default/new")
	object, ok := found.(*metav1.PartialObjectMetadata)
	return that(ok && object.Labels["made-by"] == "client-go", "the metadata informer holds %v", found)
}

// switched turns WatchListClient on.
type switched struct{ clientfeatures.Gates }

func (s switched) Enabled(feature clientfeatures.Feature) bool {
	return feature == clientfeatures.WatchListClient || s.Gates.Enabled(feature)
}

// watchList fills an informer by a watch with sendInitialEvents; a list beside it is a failure.
func watchList(ctx context.Context, config *rest.Config) error {
	clientfeatures.ReplaceFeatureGates(switched{clientfeatures.FeatureGates()})
	client, err := maps(config)
	if err != nil {
		return err
	}
	lists, streams := 0, 0
	source := &cache.ListWatch{
		ListFunc: func(options metav1.ListOptions) (runtime.Object, error) {
			lists++
			return client.List(ctx, options)
		},
		WatchFunc: func(options metav1.ListOptions) (watch.Interface, error) {
			if options.SendInitialEvents != nil && *options.SendInitialEvents {
				streams++
			}
			return client.Watch(ctx, options)
		},
	}
	informer := cache.NewSharedIndexInformer(source, &corev1.ConfigMap{}, 0, cache.Indexers{})
	if err := follow(ctx, config, informer, restart); err != nil {
		return err
	}
	return that(lists == 0 && streams > 0, "%d lists and %d streams of a list", lists, streams)
}

// counting counts the requests that ask for lists.
type counting struct {
	http.RoundTripper
	lists *atomic.Int32
}

func (c counting) RoundTrip(request *http.Request) (*http.Response, error) {
	if request.Method == http.MethodGet && request.URL.Query().Get("watch") == "" {
		c.lists.Add(1)
	}
	return c.RoundTripper.RoundTrip(request)
}

// listsByWatches has the clients' own List made of a watch, which takes the empty list from the bookmark at its end.
func listsByWatches(ctx context.Context, config *rest.Config) error {
	clientfeatures.ReplaceFeatureGates(switched{clientfeatures.FeatureGates()})
	typed, err := maps(config)
	if err != nil {
		return err
	}
	if _, err := typed.Create(ctx, configMap("listed", "red"), metav1.CreateOptions{}); err != nil {
		return err
	}
	var lists atomic.Int32
	counted := rest.CopyConfig(config)
	counted.Wrap(func(next http.RoundTripper) http.RoundTripper { return counting{next, &lists} })
	typed, err = maps(counted)
	if err != nil {
		return err
	}
	anything, err := dynamic.NewForConfig(counted)
	if err != nil {
		return err
	}
	partly, err := metadata.NewForConfig(counted)
	if err != nil {
		return err
	}
	options := metav1.ListOptions{FieldSelector: "metadata.name=listed"}
	first, err := typed.List(ctx, options)
	if err != nil {
		return err
	}
	second, err := anything.Resource(configMaps).Namespace("default").List(ctx, options)
	if err != nil {
		return err
	}
	third, err := partly.Resource(configMaps).Namespace("default").List(ctx, options)
	if err != nil {
		return err
	}
	found := []int{len(first.Items), len(second.Items), len(third.Items)}
	fine := lists.Load() == 0 && found[0] == 1 && found[1] == 1 && found[2] == 1 && second.GetKind() == "ConfigMapList"
	return that(fine, "%d requests for lists; %v items; the dynamic list is a %s", lists.Load(), found, second.GetKind())
}

func leaderElection(ctx context.Context, config *rest.Config) error {
	core, err := corev1client.NewForConfig(config)
	if err != nil {
		return err
	}
	coordination, err := coordinationv1client.NewForConfig(config)
	if err != nil {
		return err
	}
	leading := make(chan string, 4)
	candidate := func(name string) (context.CancelFunc, error) {
		lock, err := resourcelock.New(resourcelock.LeasesResourceLock, "default", "leader", core, coordination, resourcelock.ResourceLockConfig{Identity: name})
		if err != nil {
			return nil, err
		}
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, LeaseDuration: 3 * time.Second, RenewDeadline: 2 * time.Second, RetryPeriod: 200 * time.Millisecond, ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: func(context.Context) { leading <- name }, OnStoppedLeading: func() {}},
		})
		if err != nil {
			return nil, err
		}
		mine, stop := context.WithCancel(ctx)
		go elector.Run(mine)
		return stop, nil
	}
	next := func(want string) error {
		select {
		case name := <-leading:
			return that(name == want, "%s leads instead of %s", name, want)
		case <-ctx.Done():
			return fmt.Errorf("%s does not come to lead", want)
		}
	}
	stop, err := candidate("one")
	if err != nil {
		return err
	}
	if err := next("one"); err != nil {
		return err
	}
	if _, err := candidate("two"); err != nil {
		return err
	}
	stop()
	return next("two")
}

func protobuf(ctx context.Context, config *rest.Config) error {
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.AcceptContentTypes = config.ContentType
	informer, err := typed(config)
	if err != nil {
		return err
	}
	if err := follow(ctx, config, informer, nothing); err != nil {
		return err
	}
	core, err := corev1client.NewForConfig(config)
	if err != nil {
		return err
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example/c"}}},
	}
	if _, err := core.ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	made, err := core.Pods("default").Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	made.Labels = map[string]string{"a": "b"}
	updated, err := core.Pods("default").Update(ctx, made, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	grace := int64(0)
	gone := core.Pods("default").Delete(ctx, "p", metav1.DeleteOptions{GracePeriodSeconds: &grace})
	return errors.Join(
		that(made.Spec.RestartPolicy == corev1.RestartPolicyAlways, "a pod's defaults are lacking: %v", made.Spec),
		that(updated.Labels["a"] == "b", "an update gave %v", updated.Labels),
		that(gone == nil, "a delete gave %v", gone),
	)
}
