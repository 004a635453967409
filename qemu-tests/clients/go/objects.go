package main

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycore "k8s.io/client-go/applyconfigurations/core/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
)

func maps(config *rest.Config) (corev1client.ConfigMapInterface, error) {
	client, err := corev1client.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return client.ConfigMaps("default"), nil
}

func configMap(name, colour string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"made-by": "client-go"}},
		Data:       map[string]string{"colour": colour},
	}
}

func conflict(ctx context.Context, config *rest.Config) error {
	client, err := maps(config)
	if err != nil {
		return err
	}
	first, err := client.Create(ctx, configMap("a", "red"), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, again := client.Create(ctx, configMap("a", "red"), metav1.CreateOptions{})
	second := first.DeepCopy()
	second.Data["colour"] = "green"
	second, err = client.Update(ctx, second, metav1.UpdateOptions{})
	if err != nil {
		return err
	}
	first.Data["colour"] = "blue"
	_, stale := client.Update(ctx, first, metav1.UpdateOptions{})
	generated, err := client.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "b-"}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	dry, err := client.Create(ctx, configMap("dry", "red"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return err
	}
	_, notThere := client.Get(ctx, "dry", metav1.GetOptions{})
	_, invalid := client.Create(ctx, configMap("Not_A_Name", "red"), metav1.CreateOptions{})
	return errors.Join(
		that(apierrors.IsAlreadyExists(again), "a second create gave %v", again),
		that(apierrors.IsConflict(stale), "an update of an old version gave %v", stale),
		that(second.ResourceVersion != first.ResourceVersion && second.UID == first.UID, "the update gave %v", second.ObjectMeta),
		that(len(generated.Name) == len("b-")+5, "generateName gave %q", generated.Name),
		that(dry.UID != "" && apierrors.IsNotFound(notThere), "a dry run left an object: %v", notThere),
		that(apierrors.IsInvalid(invalid), "a bad name gave %v", invalid),
	)
}

func patches(ctx context.Context, config *rest.Config) error {
	core, err := corev1client.NewForConfig(config)
	if err != nil {
		return err
	}
	client := core.Services("default")
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "s", Annotations: map[string]string{"gone": "soon"}},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}
	if _, err := client.Create(ctx, service, metav1.CreateOptions{}); err != nil {
		return err
	}
	patch := func(kind types.PatchType, body string) (*corev1.Service, error) {
		return client.Patch(ctx, "s", kind, []byte(body), metav1.PatchOptions{})
	}
	merged, err := patch(types.MergePatchType, `{"metadata":{"annotations":{"gone":null,"stays":"here"}}}`)
	if err != nil {
		return fmt.Errorf("merge patch: %w", err)
	}
	strategic, err := patch(types.StrategicMergePatchType, `{"spec":{"ports":[{"name":"https","port":443}]}}`)
	if err != nil {
		return fmt.Errorf("strategic merge patch: %w", err)
	}
	replaced, err := patch(types.JSONPatchType, `[{"op":"test","path":"/metadata/annotations/stays","value":"here"},{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]`)
	if err != nil {
		return fmt.Errorf("JSON patch: %w", err)
	}
	_, failed := patch(types.JSONPatchType, `[{"op":"test","path":"/metadata/name","value":"other"}]`)
	_, broken := patch(types.MergePatchType, `{"metadata":`)
	removed, err := patch(types.StrategicMergePatchType, `{"spec":{"ports":[{"$patch":"delete","port":443}]}}`)
	if err != nil {
		return fmt.Errorf("strategic delete: %w", err)
	}
	return errors.Join(
		that(merged.Annotations["stays"] == "here" && len(merged.Annotations) == 1, "merge patch gave %v", merged.Annotations),
		that(len(strategic.Spec.Ports) == 2, "strategic merge patch gave %v", strategic.Spec.Ports),
		that(replaced.Labels["a"] == "b", "JSON patch gave %v", replaced.Labels),
		that(apierrors.IsInvalid(failed), "a failed test of a JSON patch gave %v", failed),
		that(apierrors.IsBadRequest(broken), "a broken patch gave %v", broken),
		that(len(removed.Spec.Ports) == 1 && removed.Spec.Ports[0].Port == 80, "strategic delete gave %v", removed.Spec.Ports),
	)
}

func apply(ctx context.Context, config *rest.Config) error {
	client, err := maps(config)
	if err != nil {
		return err
	}
	with := func(data map[string]string, manager string, force bool) (*corev1.ConfigMap, error) {
		return client.Apply(ctx, applycore.ConfigMap("applied", "default").WithData(data), metav1.ApplyOptions{FieldManager: manager, Force: force})
	}
	if _, err := with(map[string]string{"a": "1", "b": "1"}, "one", false); err != nil {
		return err
	}
	_, conflicting := with(map[string]string{"a": "2"}, "two", false)
	forced, err := with(map[string]string{"a": "2"}, "two", true)
	if err != nil {
		return err
	}
	fewer, err := with(map[string]string{}, "one", false)
	if err != nil {
		return err
	}
	extracted, err := applycore.ExtractConfigMap(fewer, "two")
	if err != nil {
		return err
	}
	return errors.Join(
		that(apierrors.IsConflict(conflicting), "another's field gave %v", conflicting),
		that(forced.Data["a"] == "2" && forced.Data["b"] == "1", "force gave %v", forced.Data),
		that(len(fewer.Data) == 1 && fewer.Data["a"] == "2", "giving fields up left %v", fewer.Data),
		that(extracted.Data["a"] == "2", "the extracted fields are %v", extracted.Data),
	)
}

func remove(ctx context.Context, config *rest.Config) error {
	client, err := maps(config)
	if err != nil {
		return err
	}
	for _, name := range []string{"x", "y", "z"} {
		if _, err := client.Create(ctx, configMap(name, "red"), metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	wrong := types.UID("not-this-one")
	precondition := client.Delete(ctx, "x", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &wrong}})
	foreground := metav1.DeletePropagationForeground
	if err := client.Delete(ctx, "x", metav1.DeleteOptions{}); err != nil {
		return err
	}
	if err := client.Delete(ctx, "y", metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
		return err
	}
	held, err := client.Get(ctx, "y", metav1.GetOptions{})
	if err != nil {
		return err
	}
	finalizers := held.Finalizers
	held.Finalizers = nil
	if _, err := client.Update(ctx, held, metav1.UpdateOptions{}); err != nil {
		return err
	}
	_, gone := client.Get(ctx, "y", metav1.GetOptions{})
	selector := metav1.ListOptions{LabelSelector: "made-by=client-go"}
	if err := client.DeleteCollection(ctx, metav1.DeleteOptions{}, selector); err != nil {
		return err
	}
	left, err := client.List(ctx, selector)
	if err != nil {
		return err
	}
	return errors.Join(
		that(apierrors.IsConflict(precondition), "a wrong precondition gave %v", precondition),
		that(held.DeletionTimestamp != nil && len(finalizers) == 1 && finalizers[0] == metav1.FinalizerDeleteDependents, "foreground deletion gave %v", held.ObjectMeta),
		that(apierrors.IsNotFound(gone), "the last finalizer's end gave %v", gone),
		that(len(left.Items) == 0, "deletecollection left %d", len(left.Items)),
	)
}

func pagination(ctx context.Context, config *rest.Config) error {
	client, err := maps(config)
	if err != nil {
		return err
	}
	const total = 25
	for i := range total {
		if _, err := client.Create(ctx, configMap(fmt.Sprintf("page-%02d", i), "red"), metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	versions := map[string]bool{}
	options := metav1.ListOptions{Limit: 10, LabelSelector: "made-by=client-go"}
	for page := 0; ; page++ {
		list, err := client.List(ctx, options)
		if err != nil {
			return err
		}
		if page == 0 {
			// What comes between the pages is not of this snapshot.
			if _, err := client.Create(ctx, configMap("page-99", "late"), metav1.CreateOptions{}); err != nil {
				return err
			}
		}
		versions[list.ResourceVersion] = true
		for _, item := range list.Items {
			seen[item.Name] = true
		}
		options.Continue = list.Continue
		if list.Continue == "" {
			break
		}
	}
	_, bad := client.List(ctx, metav1.ListOptions{Limit: 1, Continue: "nonsense"})
	return errors.Join(
		that(len(seen) == total && !seen["page-99"], "the pages held %d objects", len(seen)),
		that(len(versions) == 1, "the pages are of several versions: %v", versions),
		that(apierrors.IsBadRequest(bad) || apierrors.IsResourceExpired(bad), "a bad token gave %v", bad),
	)
}
