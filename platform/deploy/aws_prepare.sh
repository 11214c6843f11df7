#!/usr/bin/env bash
# Creates in an AWS account what cluster.yaml needs, and prints that file with it filled in:
#   - a security group that lets in SSH from one address range, and everything between its members;
#   - an encrypted shared file system (EFS) with a mount target in every default subnet, its throughput as used (elastic);
#   - instance profiles: efafnet-head may start machines, both it and efafnet-worker may use S3;
#   - the newest Ubuntu 22.04 image with NVIDIA's driver.
# It may be called again at any time: another address range replaces the old one, and what an interrupted call left
# undone is done. Needs the `aws` program and credentials.
set -euo pipefail

if [ $# -ne 2 ]; then
  echo 'usage: aws_prepare.sh REGION CIDR > my-cluster.yaml     for example: aws_prepare.sh us-west-2 203.0.113.7/32' >&2
  exit 2
fi
export AWS_REGION=$1 AWS_DEFAULT_REGION=$1
cidr=$2
refuse() { echo "error: $1; give your own address, for example 203.0.113.7/32" >&2; exit 2; }
[[ $cidr =~ ^([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})\.([0-9]{1,3})/([0-9]{1,2})$ ]] || refuse "$cidr is no address range"
for part in "${BASH_REMATCH[@]:1:4}"; do
  [ "$((10#$part))" -le 255 ] || refuse "$cidr is no address range: $part is more than 255"
done
bits=$((10#${BASH_REMATCH[5]}))
[ "$bits" -le 32 ] || refuse "$cidr is no address range: /$bits is more than /32"
[ "$bits" -ge 16 ] || refuse "$cidr lets in more than 65536 addresses"
here=$(cd "$(dirname "$0")/../.." && pwd)

# What `aws` prints for something that does not exist.
absent() { [ -z "$1" ] || [ "$1" = None ]; }
# Whether $1 is one of the words of $2, which blanks or tabs separate.
among() { case " ${2//$'\t'/ } " in *" $1 "*) ;; *) return 1 ;; esac; }

vpc=$(aws ec2 describe-vpcs --filters Name=is-default,Values=true --query 'Vpcs[0].VpcId' --output text)
if absent "$vpc"; then
  echo "error: region $1 has no default VPC; make one with: aws ec2 create-default-vpc" >&2
  exit 1
fi

group=$(aws ec2 describe-security-groups --filters Name=group-name,Values=efafnet "Name=vpc-id,Values=$vpc" \
  --query 'SecurityGroups[0].GroupId' --output text)
if absent "$group"; then
  group=$(aws ec2 create-security-group --group-name efafnet --description 'efafnet cluster' --vpc-id "$vpc" \
    --query GroupId --output text)
fi
homes=$(aws ec2 describe-security-groups --group-ids "$group" --output text \
  --query "SecurityGroups[0].IpPermissions[?FromPort==\`22\`].IpRanges[].CidrIp")
members=$(aws ec2 describe-security-groups --group-ids "$group" --output text \
  --query 'SecurityGroups[0].IpPermissions[].UserIdGroupPairs[].GroupId')
if ! among "$cidr" "$homes"; then
  aws ec2 authorize-security-group-ingress --group-id "$group" --protocol tcp --port 22 --cidr "$cidr" > /dev/null
fi
for old in $homes; do
  if [ "$old" != "$cidr" ] && [ "$old" != None ]; then
    echo "SSH is now let in from $cidr, no longer from $old" >&2
    aws ec2 revoke-security-group-ingress --group-id "$group" --protocol tcp --port 22 --cidr "$old" > /dev/null
  fi
done
if ! among "$group" "$members"; then
  aws ec2 authorize-security-group-ingress --group-id "$group" --protocol all --source-group "$group" > /dev/null
fi

files=$(aws efs describe-file-systems --creation-token efafnet --query 'FileSystems[0].FileSystemId' --output text)
if absent "$files"; then
  # By default the throughput is bursting: with its credits gone, a few MiB/s for all machines together.
  files=$(aws efs create-file-system --creation-token efafnet --encrypted --throughput-mode elastic \
    --tags Key=Name,Value=efafnet --query FileSystemId --output text)
elif [ "$(aws efs describe-file-systems --file-system-id "$files" \
  --query 'FileSystems[0].ThroughputMode' --output text)" != elastic ]; then
  aws efs update-file-system --file-system-id "$files" --throughput-mode elastic > /dev/null
fi
until [ "$(aws efs describe-file-systems --file-system-id "$files" \
  --query 'FileSystems[0].LifeCycleState' --output text)" = available ]; do sleep 3; done
mounted=$(aws efs describe-mount-targets --file-system-id "$files" --query 'MountTargets[].SubnetId' --output text)
for subnet in $(aws ec2 describe-subnets --filters "Name=vpc-id,Values=$vpc" Name=default-for-az,Values=true \
  --query 'Subnets[].SubnetId' --output text); do
  among "$subnet" "$mounted" ||
    aws efs create-mount-target --file-system-id "$files" --subnet-id "$subnet" --security-groups "$group" > /dev/null
done
while among creating "$(aws efs describe-mount-targets --file-system-id "$files" \
  --query 'MountTargets[].LifeCycleState' --output text)"; do sleep 3; done

# A role with one inline policy, inside an instance profile of the same name: $1 its name, $2 the policy.
profile() {
  aws iam get-role --role-name "$1" > /dev/null 2>&1 || aws iam create-role --role-name "$1" \
    --assume-role-policy-document '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow",
      "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}' > /dev/null
  aws iam put-role-policy --role-name "$1" --policy-name efafnet --policy-document "$2" > /dev/null
  aws iam get-instance-profile --instance-profile-name "$1" > /dev/null 2>&1 ||
    aws iam create-instance-profile --instance-profile-name "$1" > /dev/null
  among "$1" "$(aws iam get-instance-profile --instance-profile-name "$1" \
    --query 'InstanceProfile.Roles[].RoleName' --output text)" ||
    aws iam add-role-to-instance-profile --instance-profile-name "$1" --role-name "$1" > /dev/null
}
# The role that EC2 itself needs for spot machines: who starts the first one must be allowed to make it, and the head is not.
aws iam get-role --role-name AWSServiceRoleForEC2Spot > /dev/null 2>&1 ||
  aws iam create-service-linked-role --aws-service-name spot.amazonaws.com > /dev/null
account=$(aws sts get-caller-identity --query Account --output text)
buckets='{"Effect": "Allow", "Resource": "arn:aws:s3:::*", "Action": ["s3:ListBucket", "s3:GetBucketLocation",
  "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]}'
profile efafnet-worker "{\"Version\": \"2012-10-17\", \"Statement\": [$buckets]}"
# The autoscaler runs on the head: it starts workers, and may hand them their own profile and no other.
profile efafnet-head "{\"Version\": \"2012-10-17\", \"Statement\": [$buckets,
  {\"Effect\": \"Allow\", \"Resource\": \"*\", \"Action\": [\"ec2:RunInstances\", \"ec2:TerminateInstances\",
    \"ec2:CreateTags\", \"ec2:DeleteTags\", \"ec2:Describe*\", \"ec2:StopInstances\", \"ec2:StartInstances\"]},
  {\"Effect\": \"Allow\", \"Resource\": \"arn:aws:iam::$account:role/efafnet-worker\", \"Action\": \"iam:PassRole\"}]}"

image=$(aws ssm get-parameter --query Parameter.Value --output text --name \
  /aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id)

sed -e "s/ami-REPLACE/$image/" -e "s/sg-REPLACE/$group/" -e "s/fs-REPLACE/$files/" -e "s/us-west-2/$AWS_REGION/" \
  "$here/cluster.yaml"
