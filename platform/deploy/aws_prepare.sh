#!/usr/bin/env bash
# Makes what cluster.yaml needs of an AWS account, and prints the file with it filled in:
#   - a security group that lets in SSH from one address range, and everything between its members;
#   - an encrypted shared file system (EFS) in every default subnet;
#   - the newest Ubuntu 22.04 image with NVIDIA's driver.
# Calling it again uses what is there. Needs the `aws` program and credentials.
set -euo pipefail

if [ $# -ne 2 ]; then
  echo 'usage: aws_prepare.sh REGION CIDR > my-cluster.yaml     for example: aws_prepare.sh us-west-2 203.0.113.7/32' >&2
  exit 2
fi
export AWS_REGION=$1 AWS_DEFAULT_REGION=$1
cidr=$2
case $cidr in
  */0) echo "error: $cidr is the whole world; give your own address, for example 203.0.113.7/32" >&2; exit 2 ;;
  [0-9]*.*.*.*/[1-9]*) ;;
  *) echo "error: $cidr is no address range; write it like 203.0.113.7/32" >&2; exit 2 ;;
esac
here=$(cd "$(dirname "$0")/../.." && pwd)

# What `aws` prints for something that does not exist.
absent() { [ -z "$1" ] || [ "$1" = None ]; }

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
  aws ec2 authorize-security-group-ingress --group-id "$group" --protocol tcp --port 22 --cidr "$cidr" > /dev/null
  aws ec2 authorize-security-group-ingress --group-id "$group" --protocol all --source-group "$group" > /dev/null
fi

files=$(aws efs describe-file-systems --creation-token efafnet --query 'FileSystems[0].FileSystemId' --output text)
if absent "$files"; then
  files=$(aws efs create-file-system --creation-token efafnet --encrypted --tags Key=Name,Value=efafnet \
    --query FileSystemId --output text)
fi
until [ "$(aws efs describe-file-systems --file-system-id "$files" \
  --query 'FileSystems[0].LifeCycleState' --output text)" = available ]; do sleep 3; done
mounted=$(aws efs describe-mount-targets --file-system-id "$files" --query 'MountTargets[].SubnetId' --output text)
for subnet in $(aws ec2 describe-subnets --filters "Name=vpc-id,Values=$vpc" Name=default-for-az,Values=true \
  --query 'Subnets[].SubnetId' --output text); do
  case " ${mounted//$'\t'/ } " in
    *" $subnet "*) ;;
    *) aws efs create-mount-target --file-system-id "$files" --subnet-id "$subnet" --security-groups "$group" > /dev/null ;;
  esac
done

image=$(aws ssm get-parameter --query Parameter.Value --output text --name \
  /aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id)

sed -e "s/ami-REPLACE/$image/" -e "s/sg-REPLACE/$group/" -e "s/fs-REPLACE/$files/" -e "s/us-west-2/$AWS_REGION/" \
  "$here/cluster.yaml"
