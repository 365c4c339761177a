-- Health of a FineTuneJob for Argo CD: resource_customizations/finetune.dev/FineTuneJob/health.lua, or the key
-- resource.customizations.health.finetune.dev_FineTuneJob of argocd-cm.
-- As kstatus has it for a batch Job, one that runs is Healthy: a training lasts for hours, and a sync that waited for
-- it would too. Where a sync wave must wait for the result, return "Progressing" where it says so below.
local status = obj.status
if status == nil or status.conditions == nil then
  return {status = "Progressing", message = "waits for the operator"}
end
if status.observedGeneration ~= nil and status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "the operator has not seen this generation yet"}
end
local found = {}
for _, condition in ipairs(status.conditions) do
  found[condition.type] = condition
end
local function says(name, value)
  return found[name] ~= nil and found[name].status == value
end
if says("Failed", "True") then
  return {status = "Degraded", message = found.Failed.reason .. ": " .. found.Failed.message}
end
if says("Complete", "True") then
  return {status = "Healthy", message = found.Complete.message}
end
if says("Suspended", "True") then
  return {status = "Suspended", message = found.Suspended.message}
end
if says("Accepted", "False") then
  -- A job that waits for another's checkpoint is on its way; whatever else is refused, somebody must mend.
  local waits = found.Accepted.reason == "CheckpointNotReady"
  return {status = waits and "Progressing" or "Degraded", message = found.Accepted.reason .. ": " .. found.Accepted.message}
end
local message = status.phase or "started"
if status.progress ~= nil then
  message = message .. ", step " .. status.progress.display
end
return {status = "Healthy", message = message} -- "Progressing", to wait for the result
